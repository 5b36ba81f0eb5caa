"""The tiers of the tests: which tests are slow, and which part of the full tier is run.

`python -m tests.tiers REPORT` writes `tests/slow.txt` from a report of the fast tier, which
`python -m pytest -n 1 --junitxml=REPORT` makes, with a cold cache and on an idle machine.
"""

import argparse
import pathlib
import xml.etree.ElementTree
import zlib

PATH = pathlib.Path(__file__).with_name('slow.txt')
SECONDS = 0.2  # of a slow test
# Slow tests that stay in the fast tier: the laws on representatives, those of the engine and of a
# model, and those that notice an error of benchmarks/mutations/list.txt.
KEPT = (
    'tests/attention/attention_test.py',
    'tests/attention/split_cache_test.py',
    'tests/attention/ring_test.py::test_work_with_a_carry_is_even',
    'tests/contract_test.py',
    'tests/features/geo_sh_test.py::test_golden_features',
    'tests/fields/spder_test.py::test_the_derivative_is_safe_at_zero',
    'tests/lab/decoding/decode_test.py::test_every_new_token_is_drawn_with_a_key_of_its_own',
    'tests/lab/decoding/decode_test.py::test_so_they_are_where_a_method_mixes_tokens_by_itself',
    'tests/lab/decoding/double_sparsity_test.py::test_golden_channels_and_logits',
    'tests/lab/decoding/recurrence_test.py::test_losses_by_segments',
    'tests/lab/decoding/recurrence_test.py::test_segments_with_all_of_the_past_are_one_pass',
    'tests/lab/evaluate/scoring_test.py::test_logits_in_chunks_equal_logits_at_once',
    'tests/lab/evaluate/scoring_test.py::test_scored_positions_alone_equal_a_choice_from_all',
    'tests/lab/model/kinds_test.py::test_a_class_is_predicted_from_the_valid_tokens',
    'tests/lab/model/transformer_test.py::test_extension_changes_the_encoding_and_keeps_the_weights',
    'tests/lab/model/transformer_test.py::test_key_places_positions_and_train_turns_dropout_on',
    'tests/lab/model/transformer_test.py::test_logits_are_those_of_a_plain_forward_pass',
    'tests/lab/model/transformer_test.py::test_padding_and_packing_change_nothing',
    'tests/lab/model/transformer_test.py::test_parallel_branches_read_the_same_vectors',
    'tests/lab/model/transformer_test.py::test_pattern_cycles_over_the_layers_and_shares_equal_parts',
    'tests/lab/runs/checkpoint_test.py::test_none_is_removed_while_somebody_reads',
    'tests/lab/train/step_test.py',
    'tests/methods/bipe_test.py::test_packing_starts_anew_and_padding_is_not_counted',
    'tests/methods/cable_test.py::test_padding_within_a_text_costs_nothing',
    'tests/methods/carope_test.py::test_phases_keep_their_digits_over_many_blocks',
    'tests/methods/cope_test.py::test_interpolation_has_no_gradient_where_clamped',
    'tests/methods/dynamic_ntk_test.py::test_golden_bases',
    'tests/methods/kernelized_rpe_test.py::test_whole_equals_the_sweep_and_so_do_gradients',
    'tests/methods/md_lrpe_test.py::test_a_prefix_has_no_angle',
    'tests/methods/path_test.py::test_evolve_leaves_later_keys_and_other_documents',
    'tests/methods/tra_test.py::test_golden_row',
    'tests/methods/v2pe_test.py::test_golden',
    'tests/methods/window_test.py::test_blocks_are_ruled_out_only_where_no_pair_is_near',
    'tests/methods/xpos_test.py::test_one_plane_fades_by_its_factor',
    'tests/mixers/lightnet_whole_test.py::test_documents_and_padding',
    'tests/mixers/mixer_contract_test.py::test_law[gru-decoding]',
    'tests/mixers/mixer_contract_test.py::test_law[lightnet-decoding]',
)

Part = tuple[int, int]  # K, N


def part(text: str) -> Part:
    """The value of `--part`.

    Raises:
      argparse.ArgumentTypeError: it is not K/N with K from 0 to N - 1.
    """
    try:
        number, parts = map(int, text.split('/'))
    except ValueError:
        number, parts = 0, 0
    if not 0 <= number < parts:
        raise argparse.ArgumentTypeError(f'expected K/N with K from 0 to N - 1, got {text!r}')
    return number, parts


def is_in(nodeid: str, asked: Part) -> bool:
    """Whether a test belongs to a part. Tests of one function with the same first parameter belong
    to the same one, because they share what they compile.
    """
    number, parts = asked
    return zlib.crc32(nodeid.split('-')[0].encode()) % parts == number


def slow() -> frozenset[str]:
    """The names of the slow tests, as pytest writes them."""
    return frozenset(PATH.read_text(encoding='utf-8').splitlines())


def measured(report: pathlib.Path) -> frozenset[str]:
    """The names of the slow tests by a report. Slow tests that it does not have stay slow. The
    fastest test of a file may take twice as long as the others.
    """
    seconds = {
        f'{case.get("classname", "").replace(".", "/")}.py::{case.get("name")}': float(
            case.get('time', 0)
        )
        for case in xml.etree.ElementTree.parse(report).iter('testcase')
    }
    fastest: dict[str, str] = {}
    for name in sorted(seconds, key=seconds.__getitem__):
        fastest.setdefault(name.split('::')[0], name)
    first = frozenset(fastest.values())
    allowed = lambda name: SECONDS * (2 if name in first else 1)
    known = {n for n in seconds if seconds[n] > allowed(n) and not n.startswith(KEPT)}
    return frozenset(known | (slow() - seconds.keys()))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('report', type=pathlib.Path)
    found = measured(parser.parse_args().report)
    PATH.write_text(''.join(f'{name}\n' for name in sorted(found)), encoding='utf-8')
    print(f'{PATH}: {len(found)} tests')
