"""AW-Net as an installed program: the command `awnet`, and in a wheel the other packages below this one."""

from domain import __version__ as __version__
