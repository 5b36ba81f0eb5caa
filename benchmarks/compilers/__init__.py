"""The compilers of GPUs and of TPUs on a machine that has neither."""
