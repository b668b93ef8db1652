"""Predict pictures and videos: python tools/predict.py IMAGE|DIR|GLOB|VIDEO|URL ... --weights CHECKPOINT --out DIR"""

from shvit_det.commands import run

if __name__ == '__main__':
    run('predict')
