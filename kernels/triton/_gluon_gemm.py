"""The int8 product for sm_90 in Gluon: one wgmma in flight, loads by a warp of their own.

Importing this needs a Triton with Gluon (3.6 to 3.9 compile it). Not yet run on a card: compiled, read as
machine code (tests/kernels/triton/test_gluon.py), and its use of barriers run on the host
(tests/kernels/triton/test_gluon_barriers.py).

A program makes every num_programs-th tile. One warp loads boxes of both operands by TMA into a ring of
STAGES; two warp groups of four warps multiply. Two barriers a stage hold them together, and each phase of
either ends once per round of the ring:

    filled   ends when all bytes of both boxes have arrived; the multiplying warps wait for it.
    emptied  ends when they have arrived at it; the loading warp waits for it before it loads the next box.

A wait for phase 1 passes while the first phase has not ended, so the loading warp starts with 1 and fills the
ring at once. The position in the ring goes on from tile to tile. A stage is given back one step late: after
the wait that leaves one product in flight, the product before it has read its boxes. The last one is given
back after the wait for all. So there are as many arrivals as loads, whatever the number of steps and tiles,
and a program without a tile waits for nothing. TMA reads zeros beyond the edges, which add nothing; boxes
count in full then too.

A program may be a cluster of two CTAs (CTAS), each on an SM and with barriers and boxes of its own. BLOCK_N
columns are those of both: each CTA multiplies its half of them, and loads that half's box of b. The box of a
is the same for both. The first CTA alone reads it, and TMA writes it into both and tells the `filled` of both
(multicast), so that it comes from L2 once. Nothing may be written into a box that the other CTA still reads:

    ready    is one barrier a stage for both, and lies in the first CTA. It ends when the loading warps of
             both have arrived, each after its own `emptied` has ended; the first waits for it, then loads a.

The warp that arrives has told its `filled` of all bytes before, so none come unannounced. Both CTAs make the
same steps of the same tiles, though a half may lie wholly beyond N. In the end neither has anything to come
from the other: the first has waited for every arrival of the second, the second for every box.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ._epilogue import finish
from ._gemm import _tile_order

_load_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


def box_layout(box: list[int], ctas: int, shared: bool = False) -> gl.NVMMASharedLayout:
    """Return how an int8 box lies in shared memory: as TMA writes and wgmma reads it.

    ctas: of a cluster, 1 or 2. Each has its part of the rows, or, if the box is shared, all of them.
    """
    parts = None if ctas == 1 else [[0 if shared else 1, 0]]
    return gl.NVMMASharedLayout.get_default_for(box, gl.int8, cga_layout=parts)


@gluon.jit
def _next(stage, phase, STAGES: gl.constexpr):
    """The position in the ring after this one; the phase changes with each round."""
    stage += 1
    round_ends = stage == STAGES
    return gl.where(round_ends, 0, stage), gl.where(round_ends, phase ^ 1, phase)


@gluon.jit
def _load(
    a_desc,
    b_desc,
    a_boxes,
    b_boxes,
    filled,
    emptied,
    ready,
    M,
    N,
    K,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
    CTAS: gl.constexpr,
):
    """What the loading warp does, of each CTA."""
    stage = 0
    phase = 1
    for tile in range(gl.program_id(0), gl.cdiv(M, BLOCK_M) * gl.cdiv(N, BLOCK_N), gl.num_programs(0)):
        tile_m, tile_n = _tile_order(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        for step in range(gl.cdiv(K, BLOCK_K)):
            mbarrier.wait(emptied.index(stage), phase)
            barrier = filled.index(stage)
            mbarrier.expect(barrier, (BLOCK_M + BLOCK_N // CTAS) * BLOCK_K)
            a_start = [tile_m * BLOCK_M, step * BLOCK_K]
            if CTAS == 1:
                _load_box(a_desc, a_start, barrier, a_boxes.index(stage))
            else:
                mbarrier.arrive(ready.index(stage), count=1)
            _load_box(b_desc, [tile_n * BLOCK_N, step * BLOCK_K], barrier, b_boxes.index(stage))
            if CTAS == 2:
                mbarrier.wait(ready.index(stage), phase ^ 1)  # its first phase ends in the first round
                _load_box(a_desc, a_start, barrier, a_boxes.index(stage), multicast=True)
            stage, phase = _next(stage, phase, STAGES)


@gluon.jit
def _multiply(
    a_boxes,
    b_boxes,
    filled,
    emptied,
    out_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    M,
    N,
    K,
    stride_om,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
    CTAS: gl.constexpr,
):
    """What the two warp groups of a CTA do: products, then the epilogue while the next boxes arrive."""
    gl.static_assert(BLOCK_M == 256)  # what ROWS is made for
    gl.static_assert(BLOCK_N == 128 * CTAS)
    gl.static_assert(STAGES >= 2)  # a single one would never be given back
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0],
        warps_per_cta=[gl.num_warps(), 1],
        instr_shape=[16, BLOCK_N // CTAS, 32],
        cga_layout=[] if CTAS == 1 else [[0, 1]],
    )
    # A thread has two neighbouring sums of a row here. For 16-byte accesses four threads exchange theirs, so
    # that each has eight; rows stay where they are.
    ROWS: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64], [128, 0]],
        lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0], [64, 0]],
        block_bases=[] if CTAS == 1 else [[0, BLOCK_N // 2]],
        shape=[BLOCK_M, BLOCK_N],
    )
    stage = 0
    phase = 0
    for tile in range(gl.program_id(0), gl.cdiv(M, BLOCK_M) * gl.cdiv(N, BLOCK_N), gl.num_programs(0)):
        tile_m, tile_n = _tile_order(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        sums = gl.zeros((BLOCK_M, BLOCK_N), gl.int32, SUMS)
        before = stage
        for step in range(gl.cdiv(K, BLOCK_K)):
            mbarrier.wait(filled.index(stage), phase)
            right = b_boxes.index(stage).permute((1, 0))
            sums = warpgroup_mma(a_boxes.index(stage), right, sums, is_async=True)
            sums = warpgroup_mma_wait(1, deps=(sums,))
            mbarrier.arrive(emptied.index(before), count=1, pred=step > 0)
            before = stage
            stage, phase = _next(stage, phase, STAGES)
        sums = warpgroup_mma_wait(0, deps=(sums,))
        mbarrier.arrive(emptied.index(before), count=1)
        sums = gl.convert_layout(sums, ROWS)
        offs_m = tile_m * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(1, ROWS))
        offs_n = tile_n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, ROWS))
        finish(
            sums.to(gl.float32), offs_m, offs_n, M, N, out_ptr, stride_om, a_scale_ptr, b_scale_ptr,
            bias_ptr, stride_a_scale, stride_b_scale, ACTIVATION, False,
        )  # fmt: skip


@gluon.jit
def _int8_mm_gluon_kernel(
    a_desc,
    b_desc,
    out_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    M,
    N,
    K,
    stride_om,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
    CTAS: gl.constexpr,
):
    """a int8 [M, K] times b int8 [N, K] transposed, into out [M, N]; K is 1 or more.

    CTAS is the launch's num_ctas, 1 or 2; programs and BLOCK_N are those of all CTAs of a cluster.
    """
    a_boxes = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_M, BLOCK_K], a_desc.layout)
    b_boxes = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], b_desc.layout)
    OWN: gl.constexpr = mbarrier.MBarrierLayout([] if CTAS == 1 else [[1]])  # one in each CTA
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, CTAS], OWN)
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, CTAS], OWN)
    ready = emptied  # not used by one CTA
    if CTAS == 2:
        ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout([[0]]))
    for i in gl.static_range(STAGES):
        mbarrier.init(filled.index(i), count=1)
        mbarrier.init(emptied.index(i), count=1)
        if CTAS == 2:
            mbarrier.init(ready.index(i), count=1)  # one arrival of each CTA
    fence_async_shared()  # TMA arrives at barriers by another path than they were initialized by
    # Here Triton 3.9 has the CTAs of a cluster wait for each other, and again at the end (test_gluon.py).
    # The arguments stand in the call: in a variable compile-time ones would become tensors.
    gl.warp_specialize(
        [
            (_multiply, (
                a_boxes, b_boxes, filled, emptied, out_ptr, a_scale_ptr, b_scale_ptr, bias_ptr, M, N, K,
                stride_om, stride_a_scale, stride_b_scale, ACTIVATION,
                BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, STAGES, CTAS,
            )),
            (_load, (
                a_desc, b_desc, a_boxes, b_boxes, filled, emptied, ready, M, N, K,
                BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, STAGES, CTAS,
            )),
        ],
        [1],
        [40],
    )  # fmt: skip
