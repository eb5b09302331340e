"""The study's text: halves without a common file, and records that a cache really keeps."""

from pipeline.demo.corpus import is_held_out
from pipeline.records.reserve import is_reserved
from pipeline.study.data import (
    CALIBRATION_RECORDS,
    file_of,
    held_out_records,
    training_records,
)


def test_the_halves_of_the_held_out_files_share_no_file_and_no_record():
    validation, test = (held_out_records(split) for split in ("validation", "test"))
    assert {file_of(r.id) for r in validation}.isdisjoint(file_of(r.id) for r in test)
    assert all(is_held_out(file_of(r.id)) for r in (*validation, *test))
    assert min(len(validation), len(test)) > 50


def test_a_seed_has_records_of_its_own_and_knows_which_of_them_its_cache_reserves():
    count = 20
    all_records = training_records(3, count, with_reserved=True)
    total = count + CALIBRATION_RECORDS
    assert len(all_records) == total
    kept = [
        record
        for record in all_records
        if not is_reserved(record.id, seed=3, count=CALIBRATION_RECORDS, num_records=total)
    ]
    assert kept == training_records(3, count, with_reserved=False)
    assert {r.id for r in kept} != {r.id for r in training_records(4, count, with_reserved=False)}
    assert not any(is_held_out(file_of(record.id)) for record in all_records)
