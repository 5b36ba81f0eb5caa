"""What `benchmarks/compile_kernels.py` reads from compilers; and kernels compile as the table says
that is committed.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from benchmarks import compile_kernels
from benchmarks.compilers import children, reports
from benchmarks.compilers.recorded import CHECKED, model, page, worse
from posenc_jax.attention.kernels import compiled
from posenc_jax.attention.kernels.compiled import Compiled

ROOT = pathlib.Path(__file__).parents[2]
# What ptxas 12.9 says of the gradients of keys of nope() with heads of width 128 on sm_90.
PTXAS = """
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized
due to insufficient register resources for the wgmma pipeline in the function 'attention'
ptxas info    : 11 bytes gmem
ptxas info    : Compiling entry function 'attention_backward_keys' for 'sm_90a'
ptxas info    : Function properties for attention_backward_keys
    432 bytes stack frame, 588 bytes spill stores, 588 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 432 bytes cumulative stack size
ptxas info    : Compile time = 1293.452 ms
"""
# A part of the kernel of t5_rpe() on sm_90, as nvdisasm writes it: a loop over blocks of keys, and
# in it one over the 31 bounds of buckets, and one over the 32 entries of the table.
SASS = """
        /*0c70*/              @!P0 BRA `(.L_x_0) ;
        /*0c80*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR14][R4.64] ;
.L_x_3:
        /*0f70*/                   LDC.64 R28, c[0x0][0x210] ;
        /*0f80*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
.L_x_1:
        /*23a0*/                   ISETP.NE.U32.AND P6, PT, R134, R25, PT ;
        /*23b0*/                   IADD3 R25, R25, 0x1, RZ ;
        /*2bf0*/                   ISETP.GT.AND P6, PT, R25, 0x1e, PT ;
        /*2c10*/              @!P6 BRA `(.L_x_1) ;
        /*2c20*/                   MOV R79, RZ ;
.L_x_2:
        /*31e0*/                   IADD3 R79, R79, 0x1, RZ ;
        /*3200*/                   ISETP.GT.AND P6, PT, R79, 0x1f, PT ;
        /*3210*/              @!P6 BRA `(.L_x_2) ;
        /*3220*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*5ce0*/              @!P1 BRA `(.L_x_3) ;
.L_x_0:
        /*6f30*/                   EXIT ;
.L_x_4:
        /*6f40*/                   BRA `(.L_x_4);
"""
# A part of the kernel of t5_rpe() on a v5e, as libtpu writes it: the steps of the grid, in each one
# a visit, which is skipped where no block is met, and in it a loop over 31 bounds.
BUNDLES = """
LB: loop body
     0   :  { %s1 = smov.u32 [#allocation6] }
  0x19 LB: > { %s7 = sld [smem:[#allocation9_spill]] }
  0x27   : > { %697 = sbr.rel (%p694_p5) target = $region64 }
  0x80 PF: > { %s1172_s15 = sld [smem:[#allocation7 + %s8540_s27]] } /* Start/End empty region 68 */
  0x82   : > { %1176 = sbr.rel (%p6220_p9) target = $region72 }
  0x83   : > { %9 = vmatmul.bf16.gmra.mxu1 %v7  ;;  %v2 = vld [vmem:[%s6511_s29] sm:$0x3] }
  0x84 LB: >> { %16 = vst [vmem:[#allocation164_spill] sm:$0xff] /*vst_source=*/%v8824_v24 }
  0x85   : >> { %p2363_p10 = scmp.ge.s32.totalorder %s11842_s30, 31 /* loop exit test */ }
  0x86   : >> { %2678 = sbr.rel (!%p2676_p11) target = $region180 }
  0x87   : > { %9 = vmatmul.bf16.gmra.mxu1 %v8 }
  0x88 PF: > { %s17226_s20 = sld [smem:[#allocation432_spill]] } /* Start/End empty region 72 */
  0x89   : > { %4694 = sbr.rel (%p6446_p12) target = $region90 }
  0x8a PF: > { %s17228_s25 = sld [smem:[#allocation14_spill]] } /* Start/End empty region 90 */
  0x8b   :  { %41 = sbr.rel (!%p38_p13) target = $region191 } /* End region 64 :: Start region 64 */
"""
USE = """
== CAPACTIY:
MATMUL, XLU, VLOAD:FILL, VSTORE:SPILL
    4     3     3     1
== UTILIZATION:
0 0 0 0
0 0 0 0
0 0 0 0
0 0 0 0
0 0 0 0
2 0 0 0
0 1 0 1
0 0 1 0
0 0 0 0
2 0 0 0
0 0 0 0
0 0 0 0
0 0 0 0
0 0 0 0
"""


def test_registers_and_spills_are_those_of_ptxas():
    assert reports.resources(PTXAS) == dict(registers=255, spills=588, serial=1)
    quiet = 'ptxas info    : Used 40 registers, used 0 barriers'
    assert reports.resources(quiet) == dict(registers=40, spills=0, serial=0)
    refused = 'ptxas fatal   : (C7600) Register allocation failed\nptxas info: 1 bytes gmem'
    with pytest.raises(ValueError, match='Register allocation failed'):
        reports.resources(refused)


def test_loops_within_the_loop_count_as_often_as_they_run():
    # 5 instructions beside the two loops, of 4 x 31 and of 3 x 32.
    assert reports.of_loop(SASS) == reports.OfLoop(5 + 124 + 96, 124 + 96, 2, 1, 5 + 124 + 96, 0)
    plain = SASS.replace('BRA `(.L_x_1)', 'NOP').replace('BRA `(.L_x_2)', 'NOP')
    assert reports.of_loop(plain) == reports.OfLoop(12, 0, 2, 1, 12, 0)
    assert reports.of_loop('').loop == 0
    # As on sm_80: the loop is left in its middle, by a far jump, and uniform registers count.
    middle = """
        /*31d0*/                   UISETP.GT.AND UP0, UPT, UR5, 0x1f, UPT ;
        /*31e0*/                   UIADD3 UR5, UR5, 0x1, URZ ;
        /*3200*/                   PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x0 ;
        /*3208*/               @P0 CALL.REL.NOINC `(.L_x_5) ;
        /*3210*/                   BRA `(.L_x_2) ;
.L_x_5:"""
    first, last = SASS.index('        /*31e0*/'), SASS.index('\n        /*3220*/')
    far = SASS[:first] + middle.lstrip('\n') + SASS[last:]
    found = reports.of_loop(far)
    assert found == reports.OfLoop(5 + 124 + 5 * 32, 124 + 5 * 32, 2, 1, 5 + 124 + 5 * 32, 0)
    # A loop for tiles with look-ups, and one for the others.
    both = SASS + re.sub(r'\.L_x_(\d+)', r'.L_y_\1', plain)
    assert reports.of_loop(both) == reports.OfLoop(12, 0, 2, 2, 5 + 124 + 96, 0)
    spilled = both.replace('HGMMA', '@!P0 STL.64 [R1+0x8], R4 ;\n/*0f80*/ HGMMA', 1)
    assert reports.of_loop(spilled).local == 0  # in the loop with look-ups alone
    assert reports.of_loop(plain.replace('MOV R79, RZ', 'LDL R79, [R1]')).local == 1


def test_a_visit_is_what_is_skipped_and_its_loops_count_as_often_as_they_run():
    found = reports.of_visit(BUNDLES, USE.lstrip())
    units = {'MATMUL': 4, 'XLU': 31, 'VLOAD:FILL': 31, 'VSTORE:SPILL': 31}
    assert found == reports.OfVisit(5 - 1 + 3 * 31, 3 * 31, units, 62)
    # A part for tiles that need a mask, and one for the others.
    whole = """
  0x89   : > { %1176 = sbr.rel (%p6220_p9) target = $region73 }
  0x8a   : > { %9 = vmatmul.bf16.gmra.mxu1 %v7 }
  0x8b   : > { %9 = vmatmul.bf16.gmra.mxu1 %v8 }
  0x8c PF: > { %s17226_s20 = sld [smem:[#allocation432_spill]] } /* Start/End empty region 73 */"""
    first, end = BUNDLES.split('region 72 */')
    both = first + 'region 72 */' + whole + end
    assert reports.of_visit(both, USE.lstrip() + 4 * '0 0 0 0\n').bundles == 4
    with pytest.raises(ValueError, match='no part with products'):
        reports.of_visit(BUNDLES.replace('vmatmul', 'vadd'), USE.lstrip())


def test_what_is_worse_than_recorded_is_named():
    gpu = Compiled(
        'alibi', 64, 'bfloat16', 'sm_90',
        loop=(100, 100, 100), spills=(0, 0, 0), shared=(80, 96, 89), tensor=(8, 8, 8),
        copies=(30, 30, 0),
    )  # fmt: skip
    changed = lambda **numbers: worse(dataclasses.replace(gpu, **numbers), gpu)
    assert changed() == [] and changed(loop=(110, 90, 100), spills=(16, 0, 0)) == []
    assert changed(loop=(100, 111, 100)) == ['loop of dq: 111, recorded 100']
    assert changed(spills=(0, 0, 17)) == ['spills of dkv: 17, recorded 0']
    assert changed(shared=(80.25, 96, 89)) == ['shared of forward: 80.25, recorded 80']
    assert changed(tensor=(0, 8, 8)) == ['forward has no products on tensor cores']
    assert changed(copies=(0, 30, 0)) == ['forward has no asynchronous copies']
    assert changed(refused='LLVM ERROR') == ['LLVM ERROR']
    tpu = Compiled('alibi', 64, 'bfloat16', 'v5e', '512x512', bundles=(916, 811, 1159))
    slow = dataclasses.replace(tpu, bundles=(916, 811, 1300))
    assert worse(tpu, tpu) == [] and worse(slow, tpu) == ['bundles of dkv: 1300, recorded 1159']
    splash = compiled.table()[compiled.SPLASH, 64, 'bfloat16', 'v5e']
    goal = dataclasses.replace(
        tpu, tile=splash.tile, bundles=tuple(1.3 * n for n in splash.bundles)
    )
    said = ['bundles: 1.30 times those of splash attention, goal 1.2']
    assert worse(goal, goal) == said
    assert worse(kerple := dataclasses.replace(goal, encoding='kerple'), kerple) == []


def test_a_time_by_the_model_grows_with_instructions_and_with_products():
    line = Compiled(
        'alibi', 128, 'bfloat16', 'sm_90', '64x64',
        warps=(4, 4, 4), loop=(1077, 1410, 2401), spills=(0, 0, 0),
    )  # fmt: skip
    # 264,192 tiles on 132 cores: 2,001.4 tiles each, of 1.25 x (1077 + 512) cycles at 1.755 GHz.
    assert model(line) == pytest.approx((2.265, 7.988), abs=2e-3)
    wide = dataclasses.replace(line, tile='128x64', warps=(8, 8, 8))
    assert model(wide)[0] == pytest.approx(2.265 * 65 / 64.5, rel=1e-3)


def test_the_documentation_has_the_table():
    text = (ROOT / 'docs' / 'performance.md').read_text()
    classes = {key: compile_kernels.class_of(key) for key in compile_kernels.SHOWN}
    assert [line for line in page(classes) if line not in text] == []


@pytest.mark.full
def test_the_end_of_a_compiler_is_a_reason():
    """As of LLVM, which says a line and ends the process; and of one that never ends."""
    assert children.call(divmod, 7, 2, seconds=60) == (3, 1)
    with pytest.raises(children.Refused, match='division'):
        children.call(divmod, 7, 0, seconds=60)
    with pytest.raises(children.Refused, match='ends with -6: LLVM ERROR: Layout'):
        children.call(_abort, 'LLVM ERROR: Layout is expected to be surjective', seconds=60)
    with pytest.raises(children.Refused, match='not within 1 s'):
        children.call(_turn, seconds=1)


def _abort(message):
    os.write(2, f'{message}\nPLEASE submit a bug report\n'.encode())
    os.abort()


def _turn():
    while True:
        pass


def command(*options, environment=None):
    """What `benchmarks/compile_kernels.py` says."""
    path = os.pathsep.join([str(ROOT), os.environ.get('COMPILERS', '')])
    own = dict(PYTHONPATH=path, JAX_PLATFORMS='cpu', XLA_FLAGS='')
    return subprocess.run(
        [sys.executable, 'benchmarks/compile_kernels.py', *options],
        cwd=ROOT, env=os.environ | own, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.full
def test_a_table_of_other_sizes_is_not_written():
    done = command('--write', '--specs', 'nope()')
    assert done.returncode == 2 and '--write needs --keys' in done.stderr.splitlines()[-1]


@pytest.mark.full
def test_kernels_compile_as_the_table_says():
    """The folder in the variable COMPILERS has what requirements/compilers.txt lists."""
    done = command('--check', '--processes', '2')
    if done.returncode == 2:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stdout + textwrap.shorten(done.stderr, 2000)
    compared = [line for line in done.stdout.splitlines() if line.endswith('as recorded')]
    if len(compared) < len(CHECKED):
        pytest.skip(next(line for line in done.stdout.splitlines() if 'not compared' in line))
