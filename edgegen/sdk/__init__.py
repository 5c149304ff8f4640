"""The one surface that both front ends use: the workspace, the stages, the whole chain."""
