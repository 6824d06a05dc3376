"""Verify: does a run, or a rebuilt tree, still stand as drumline wrote it? Nothing of it is ever changed.

    verify_run(path) ─► Report        verify_tree(out) ─► Report

A report has a line for each check, a finding for each problem, and notes on what is worth knowing but no
problem. `drumline.repair` begins with the same inspection.

=========  ====================  ======================================================================
check      kind of problem       means
=========  ====================  ======================================================================
run.json   run_json              cannot be read, or contradicts itself
frames     index_missing         a complete run has no index
frames     damaged_frame         bytes between whole frames that are no whole frame
frames     torn_tail             bytes behind the last whole frame
frames     no_checksum           a zstd frame without a checksum of its content
records    bad_record            a line that is no record
paths      double_record         a path has more than one record
decisions  other_decision        a record is not what run.json's settings make of its probabilities
summary    summary               cannot be read, or differs from the index or run.json
cache      cache                 cannot be read, or differs from the index or run.json
archive    missing, changed      a file is gone, or has another size or mtime than its record says
files      missing, changed      a file of a tree is gone, or is not what the mapping log says
files      not_linked            a hard link of a tree is no longer the archive's file
(both)     content, unreadable   the content has another hash; the system does not let it be read
log        log                   the mapping log of a tree makes no sense
reports    missing, changed      a manifest or summary of a tree is gone, or was edited
=========  ====================  ======================================================================

Memory: 17 bytes a record (a hash of its path, sorted), the cache's directories and frames, and the largest
frame of the index.

============  ==========================================================
findings      the words: check, kind, finding, report
frames        whole frames and what lies between them
judge         what is wrong with one line of an index
inspection    a run: where its parts are, and what is the matter with each
cached        the cache against the index
originals     the archive against the index
tree          a rebuilt tree against its mapping log
============  ==========================================================
"""

from drumline.verify.findings import Check, Finding, Kind, Report
from drumline.verify.inspection import verify_run
from drumline.verify.tree import is_tree, verify_tree

__all__ = ["Check", "Finding", "Kind", "Report", "is_tree", "verify_run", "verify_tree"]
