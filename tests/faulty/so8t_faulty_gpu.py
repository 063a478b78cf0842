"""A step that learns on a device with too little memory for its micro-batch: a GPU as it is, or the CPU under a limit."""

from __future__ import annotations

from so8t_faulty import Faulty, FaultySettings
from so8t_faulty_memory import limit_address_space

from so8t_fsm.step import MiB, StepContext

TENSORS = 16
"""How many tensors of one sample fit; a micro-batch takes up to four for each of its samples."""


class Learn(Faulty):
    """One step of gradient descent over one effective batch, accumulated over micro-batches.

    Sample ``i`` is a tensor full of ``i``; the loss is the mean of ``(w·i - 2i)²/2``, so that the new weight depends on
    every sample once, and on nothing else.
    """

    name, state = "faulty_learn", "training"
    reads = ()

    def work(self, ctx: StepContext, faulty: FaultySettings) -> str:
        import torch

        training = ctx.config["training"]
        batch, accumulation = int(training["batch_size"]), int(training["gradient_accumulation_steps"])
        device = torch.device(faulty.device)
        weight = torch.zeros((), device=device, requires_grad=True)
        if device.type == "cuda":
            room = torch.cuda.get_device_properties(device).total_memory
        else:
            room = 768 * MiB
            limit_address_space(room)
        numbers = room // TENSORS // 4
        for micro in torch.arange(1.0, batch * accumulation + 1.0, device=device).split(batch):
            sample = micro[:, None] * torch.ones(1, numbers, device=device)
            loss = ((weight * sample - 2.0 * micro[:, None]).square() / 2.0).mean(dim=1).sum() / (batch * accumulation)
            loss.backward()
        assert weight.grad is not None
        return f"learnt {-weight.grad.item():.4f}"
