"""Looks into the host for `bench/load.py`: what a prompt still does once it was told to stop, and what memory holds.

As a custom node pack it brings no node. A call is a call of a network from outside any other network: of the UNet, a
text tower, a part of the VAE, CLIP's vision tower, a classifier, be it for a gradient or not.
"""

import ctypes
import gc
import sys
import time

import comfy.model_management
import comfy.ops
import execution
import psutil
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


class Calls:
    """Counts the calls from when the running prompt is told to stop until it has ended."""

    def __init__(self):
        self.inside, self.told = False, None
        self.begun = self.finished = 0
        self.after_stop: dict[str, dict] = {}
        """By prompt id."""

    def call(self, module, *args, **kwargs):
        if self.inside:
            return plain_call(module, *args, **kwargs)
        self.inside, self.begun = True, self.begun + 1
        try:
            result = plain_call(module, *args, **kwargs)
            self.finished += 1
            return result
        finally:
            self.inside = False

    def interrupt(self, value=True):
        # the worker passes none of the host's looks at the flag between the two
        with comfy.model_management.interrupt_processing_mutex:
            if not value:  # the host takes it back when a prompt begins
                self.told = None
            elif self.told is None:
                self.told = time.perf_counter(), self.begun, self.finished, self.inside
            plain_interrupt(value)

    def task_done(self, queue, item_id, *args, **kwargs):
        prompt_id = queue.currently_running[item_id][1]
        if self.told is not None:
            told, begun, finished, inside = self.told
            self.after_stop[prompt_id] = {
                "begun": self.begun - begun,
                "finished": self.finished - finished,
                "inside": inside,
                "seconds": time.perf_counter() - told,
            }
        self.told = None
        plain_task_done(queue, item_id, *args, **kwargs)


calls = Calls()
plain_call, plain_interrupt = torch.nn.Module.__call__, comfy.model_management.interrupt_current_processing
plain_task_done = execution.PromptQueue.task_done
torch.nn.Module.__call__ = lambda module, *args, **kwargs: calls.call(module, *args, **kwargs)
comfy.model_management.interrupt_current_processing = calls.interrupt
execution.PromptQueue.task_done = lambda queue, *args, **kwargs: calls.task_done(queue, *args, **kwargs)


@PromptServer.instance.routes.get("/steer_load_probe")
async def probe(request):
    """What memory holds, in MiB. To be asked while nothing runs; the host collects garbage then, too."""
    gc.collect()
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in gc.get_objects()
        if issubclass(type(each), torch.Tensor) and each.layout == torch.strided and each.device.type != "meta"
    }
    return web.json_response(
        {
            "resident": psutil.Process().memory_info().rss / 2**20,
            "tensors": len(storages),
            "size of tensors": sum(storages.values()) / 2**20,
            "objects": len(gc.get_objects()),
            "after_stop": calls.after_stop,
        }
    )


@PromptServer.instance.routes.get("/steer_load_probe/give_back")
async def give_back(request):
    """The same once the host's history is forgotten and the C allocator has given back what it can."""
    PromptServer.instance.prompt_queue.wipe_history()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return await probe(request)


@PromptServer.instance.routes.get("/steer_load_probe/calls_only")
async def calls_only(request):
    """From now on the host does not look for an interrupt at each of its layers, but between calls only."""
    comfy.ops.run_every_op = lambda: None
    return web.json_response({})
