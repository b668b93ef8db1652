# What `arch` implies for the rest of a model: the channels of the three outputs, and the authors' ImageNet weights.
release = 'https://github.com/ysj9909/SHViT/releases/download/v1.0'
variants = dict(
    s1=dict(channels=[128, 224, 320], weights=f'{release}/shvit_s1.pth'),
    s2=dict(channels=[128, 308, 448], weights=f'{release}/shvit_s2.pth'),
    s3=dict(channels=[192, 352, 448], weights=f'{release}/shvit_s3.pth'),
    s4=dict(channels=[224, 336, 448], weights=f'{release}/shvit_s4.pth'),
)
del release
