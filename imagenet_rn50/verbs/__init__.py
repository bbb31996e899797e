"""What can be said after python -m imagenet_rn50: options and their words, not what is done.

Heavy libraries are imported inside each verb, so that --help answers at once.
"""
