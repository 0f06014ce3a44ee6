"""`turbosparse` with FSDP between CPU processes, which accelerate has for GPUs alone."""

import sys

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from turbosparse.server.cli import main

begin = AcceleratorState.__init__


def begin_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    self.fsdp_plugin = fsdp_plugin or getattr(self, "fsdp_plugin", None)
    if self.fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        if self._mixed_precision != "no":
            self.fsdp_plugin.set_mixed_precision(self._mixed_precision)


if __name__ == "__main__":
    torch.set_num_threads(1)
    AcceleratorState.__init__ = begin_with_fsdp
    sys.exit(main())
