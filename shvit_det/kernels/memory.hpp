// Memory that the kernels need for themselves.

#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "vectors.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace shvit {

constexpr Size ALIGNED = 64;  // bytes: a cache line

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

inline Size aligned(Size bytes) { return (bytes + ALIGNED - 1) / ALIGNED * ALIGNED; }

// Aligned memory; to be asked for outside of parallel regions, which no exception can leave.
inline Buffer buffer(Size bytes) {
    void* memory = std::aligned_alloc(ALIGNED, aligned(std::max<Size>(bytes, 1)));
    if (!memory) throw std::bad_alloc();
    return Buffer(memory);
}

inline int this_thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Memory of which each thread has its own piece.
class Pieces {
  public:
    Pieces(Size bytes, int threads) : bytes_(aligned(bytes)), memory_(buffer(bytes_ * threads)) {}

    template <class Number>
    Number* mine() const {
        return reinterpret_cast<Number*>(static_cast<char*>(memory_.get()) + this_thread() * bytes_);
    }

  private:
    Size bytes_;
    Buffer memory_;
};

}  // namespace shvit
