"""`'fused'` leaves kernels that do not fit a device, by the table of what compilers said."""

import dataclasses
import itertools
import re
import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

import posenc_jax as pj
from posenc_jax.attention.kernels import compiled
from posenc_jax.attention.kernels.compiled import Compiled
from posenc_jax.attention.kernels.sizes import NoKernelError, best_tile
from posenc_jax.base import targets
from posenc_jax.protocol.registry import entries

FITS = Compiled(
    'alibi', 64, 'bfloat16', 'sm_90', '64x64',
    warps=(4, 4, 4), registers=(168, 255, 255), spills=(1024, 8192, 8000), shared=(227, 96, 89),
)  # fmt: skip
LARGE = dataclasses.replace(FITS, encoding='kerple', shared=(80, 336.5, 89), spills=(0, 0, 0))
SPILLS = dataclasses.replace(FITS, encoding='fire', spills=(1025, 0, 0))
REFUSED = Compiled(
    'bam', 128, 'float32', 'v5e', '256x256', refused='the compiler ends with -6: LLVM ERROR'
)  # fmt: skip
SPLASH = Compiled(compiled.SPLASH, 64, 'bfloat16', 'v5e', '512x512', bundles=(1000, 1500, 1500))
WIDE = dataclasses.replace(SPLASH, encoding='shaw', tile='256x256', bundles=(600, 900, 1000))
SLOW = dataclasses.replace(WIDE, encoding='urpe', bundles=(600, 900, 1001))


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table with one line of each kind."""
    path = tmp_path / 'compiled.csv'
    path.write_text(compiled.PATH.read_text().splitlines()[0])
    monkeypatch.setattr(compiled, 'PATH', path)
    compiled.write([FITS, LARGE])
    compiled.write([SPILLS, REFUSED])
    yield path
    compiled.table.cache_clear()


def test_a_table_that_is_written_is_read(table):
    assert set(compiled.table().values()) == {FITS, LARGE, SPILLS, REFUSED}
    compiled.write([dataclasses.replace(FITS, tile='32x32')])
    assert compiled.table()[FITS.key].tile == '32x32' and len(compiled.table()) == 4


@pytest.mark.parametrize(
    'asked, reason',
    [
        (('alibi', 64, 'bfloat16', 'sm_90'), None),
        (('kerple', 64, 'bfloat16', 'sm_90'), r'would need 336.5 KiB .* kerple .* 64 .* has 227'),
        (('kerple', 96, 'bfloat16', 'sm_90'), 'width 64'),  # a wider head needs no less
        (('kerple', 32, 'bfloat16', 'sm_90'), None),
        (('kerple', 64, 'float16', 'sm_90'), '336.5 KiB'),
        (('kerple', 64, 'float32', 'sm_90'), None),
        (('kerple', 64, 'bfloat16', 'sm_80'), None),
        (('kerple', 64, 'bfloat16', None), None),
        (('fire', 64, 'bfloat16', 'sm_90'), 'would spill 1025 bytes .* fire .* more than 1024'),
        (('bam', 128, 'float32', 'v5e'), 'does not compile for bam .* on v5e: .* LLVM ERROR'),
        (('nope', 64, 'bfloat16', 'sm_90'), None),
    ],
    ids=lambda value: '-'.join(map(str, value)) if isinstance(value, tuple) else '',
)
def test_a_kernel_is_refused_by_its_line(table, asked, reason):
    found = compiled.refusal(*asked, (256, 256))
    assert found is None if reason is None else re.search(reason, found)


def test_spills_of_rare_tiles_do_no_harm_and_those_of_gradients_do():
    assert SPILLS.refusal() and dataclasses.replace(SPILLS, local=(1, 0, 0)).refusal()
    assert dataclasses.replace(SPILLS, local=(0, 40, 40)).refusal() is None
    gradients = dataclasses.replace(FITS, spills=(0, 0, 8193), local=(0, 0, 9))
    assert re.search('would spill 8193 bytes .* more than 8192', gradients.refusal())
    assert gradients.refusal(slow=False) is None


def test_a_kernel_of_a_tpu_is_compared_with_splash_attention(table):
    assert WIDE.over_splash() is None and SLOW.refusal() is None
    compiled.write([SPLASH])
    assert WIDE.over_splash() == 2.5 and WIDE.refusal() is None
    assert re.search('2.5 times the bundles of splash .* urpe .* on v5e, more than', SLOW.refusal())
    assert SLOW.refusal(slow=False) is None
    for width, refused in ((32, True), (64, True), (128, True)):  # narrower heads are as slow
        asked = 'urpe', width, 'bfloat16', 'v5e', (256, 256)
        compiled.write([SLOW])
        assert (compiled.refusal(*asked) is not None) == refused
        assert compiled.refusal(*asked, slow=False) is None
    assert dataclasses.replace(SLOW, width=128).over_splash() is None
    for dtype, target in (('float32', 'v5e'), ('bfloat16', 'v5p')):  # which have no line
        asked = 'urpe', 64, dtype, target, (256, 256)
        assert 'bundles' in compiled.refusal(*asked) and compiled.refusal(*asked, False) is None


def test_a_tile_asks_lines_of_tiles_that_are_no_larger(table):
    refusal = lambda tile: compiled.refusal('kerple', 64, 'bfloat16', 'sm_90', tile)
    assert refusal((64, 64)) and refusal((64, 128)) and refusal((128, 128))
    assert refusal((64, 32)) is None and refusal((32, 128)) is None


def attention(
    spec, implementation, block=None, target='cuda', device='sm_90', length=64, dtype=jnp.bfloat16
):
    """The program of attention of heads of width 64, as a traced program."""
    sizes = dict(heads=2, head_dim=64, model_dim=128, train_len=64)
    encoding = pj.make(spec, causal=True, rngs=nnx.Rngs(0), **sizes)
    tok = pj.Tokens.of(length=length)

    def run(q):
        how = dict(implementation=implementation, block=block, applied=pj.TOKEN_STAGE)
        return pj.attend(encoding, q, q, q, tok, tok, **how)

    with targets.made_for(target, device):
        return jax.make_jaxpr(run)(jax.ShapeDtypeStruct((1, length, 2, 64), dtype))


def has_kernel(program) -> bool:
    return 'pallas_call' in str(program)


def test_fused_takes_the_blocked_form_where_a_kernel_does_not_fit(table):
    assert has_kernel(attention('alibi()', 'fused'))
    for spec in ('kerple()', 'fire()', 'alibi() | kerple()'):
        assert not has_kernel(attention(spec, 'fused'))
        assert not has_kernel(attention(spec, 'fused', block=64))
    # Of another device nothing is known, and of a smaller tile neither.
    assert has_kernel(attention('kerple()', 'fused', device='sm_80'))
    assert has_kernel(attention('kerple()', 'fused', device=None))
    assert has_kernel(attention('kerple()', 'fused', block=32))


@pytest.mark.parametrize(
    'target, device, why',
    [
        ('cuda', 'sm_80', dict(shared=(163.25, 96, 89))),
        ('cuda', 'sm_80', dict(spills=(0, 0, 8193))),
        ('tpu', 'v5p', dict(refused='LLVM ERROR')),
    ],
)
def test_fused_asks_the_line_of_the_device(table, target, device, why):
    fits = Compiled('alibi', 64, 'bfloat16', device, '64x64' if target == 'cuda' else '256x256')
    compiled.write([fits, dataclasses.replace(fits, encoding='kerple', **why)])
    mesh = AbstractMesh((1,), ('data',), axis_types=(AxisType.Manual,))
    with jax.sharding.use_abstract_mesh(mesh):  # as inside of `jax.shard_map`, which a TPU needs
        program = lambda spec: attention(spec, 'fused', None, target, device, length=256)
        assert has_kernel(program('alibi()')) and not has_kernel(program('kerple()'))


def test_the_tile_of_a_tpu_is_that_of_the_table(table):
    tile = lambda spec, *of: best_tile(pj.make(spec, causal=True, heads=2, rngs=nnx.Rngs(0)), *of)
    line = lambda *key, **numbers: Compiled(*key, 'bfloat16', 'v5e', **numbers)
    compiled.write([
        line('nope', 64, tile='512x512'), line('alibi', 128, tile='256x512'),
        line('kerple', 64, tile='256x256', refused='LLVM ERROR'),
    ])  # fmt: skip
    with targets.made_for('tpu', 'v5e'):
        assert tile('document()', 64, 'bfloat16') == (512, 512)
        assert tile('alibi() | window(size=8)', 64, 'bfloat16') == (256, 512)
        # A wider head, another dtype, what was refused, what was not asked, and two at a time.
        assert tile('alibi()', 256, 'bfloat16') is None
        assert tile('alibi()', 64, 'float32') is None
        assert tile('kerple()', 64, 'bfloat16') is None
        assert tile('fire()', 64, 'bfloat16') is None
        assert tile('alibi() | kerple()', 64, 'bfloat16') is None
    for device in ('v5p', None):
        with targets.made_for('tpu', device):
            assert tile('alibi()', 64, 'bfloat16') is None


@pytest.mark.parametrize(
    'target, device, tile, block, steps',
    [
        ('tpu', 'v5e', '512x512', None, 2),
        ('tpu', 'v5e', '512x512', 256, 4),
        ('tpu', 'v5p', '512x512', None, 2),
        ('cuda', 'sm_80', '128x64', None, 8),
        ('cuda', 'sm_80', '128x64', 64, 16),
    ],
)
def test_attention_has_the_tile_of_the_table(table, target, device, tile, block, steps):
    compiled.write([Compiled('alibi', 64, 'bfloat16', device, tile=tile)])
    program = str(attention('alibi()', 'kernel', block, target, device, length=1024))
    assert re.search(rf'\(1, 2, {steps}[,)]', program[program.index('grid=') :])


@pytest.mark.parametrize(
    'device, dtype, precision, steps',
    [
        ('sm_90', jnp.float32, 'highest', 32),  # tiles of 32 x 32
        ('sm_75', jnp.float32, None, 32),  # which has no TF32
        ('sm_90', jnp.float32, None, 16),
        ('sm_90', jnp.bfloat16, 'highest', 16),
    ],
)
def test_products_in_full_float32_have_smaller_tiles(table, device, dtype, precision, steps):
    with jax.default_matmul_precision(precision):
        program = str(attention('nope()', 'kernel', None, 'cuda', device, 1024, dtype))
    assert re.search(rf'\(1, 2, {steps}[,)]', program[program.index('grid=') :])


def test_a_kernel_that_is_asked_for_and_does_not_fit_is_one_line(table):
    with pytest.raises(NoKernelError, match='^attend: .*336.5 KiB.*kerple.*64.*sm_90.*227') as e:
        attention('kerple()', 'kernel')
    with pytest.raises(NoKernelError, match='336.5 KiB'):
        attention('kerple()', 'kernel', block=128)
    assert has_kernel(attention('kerple()', 'kernel', block=32))
    assert '\n' not in str(e.value) and 'smaller block' in str(e.value)
    assert has_kernel(attention('fire()', 'kernel'))  # it runs, and waits for its own memory


@pytest.mark.parametrize(
    'device, name',
    [
        (dict(platform='gpu', compute_capability='9.0', device_kind='NVIDIA H100'), 'sm_90'),
        (dict(platform='tpu', device_kind='TPU v5 lite'), 'v5e'),
        (dict(platform='tpu', device_kind='TPU v5'), 'v5p'),
        (dict(platform='cpu', device_kind='cpu'), None),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_device_has_the_name_of_the_table(monkeypatch, device, name):
    monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(**device)])
    assert targets.device() == name


def test_the_table_has_lines_of_known_encodings():
    known, lines = {entry.key for entry in entries('encoding')}, compiled.table().values()
    assert {line.encoding for line in lines} <= known | {compiled.SPLASH}
    for line in lines:
        assert all(side >= 16 for side in line.sides)
        assert line.width in (64, 128) and line.dtype in ('float32', 'bfloat16')
        numbers = line.shared or line.bundles
        assert line.refused or len(numbers) in (1, 3, 4)  # 1 where gradients are those of blocks
        assert line.compilers.startswith('jax ')
    for encoding in ('nope', 'alibi', 't5_rpe', 'cope'):
        assert (encoding, 64, 'bfloat16', 'sm_90') in compiled.table()
    for encoding, target in itertools.product(('nope', 'alibi', 't5_rpe'), ('sm_80', 'v5p')):
        assert (encoding, 128, 'bfloat16', target) in compiled.table()
    refused = lambda *line: str(compiled.refusal(*line, 'bfloat16', 'sm_90', (64, 64)))
    assert 'bytes of each thread' in refused('carope', 128)
    assert 'does not compile' in refused('cope', 64)
    # A layer of four heads of width 128 reads 512 features, of which each tile makes keys.
    assert 'KiB of shared' in refused('transformer_xl', 128)
