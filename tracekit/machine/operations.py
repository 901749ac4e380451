"""The operations table: one row for each thing the kernel did, and the one list of their names.

Columns of the table (polars):

    op          what was done, a name of ``OPERATIONS``
    time_ns     when, the trace's clock; null where only an interval is known
    task, cpu   thread that did it (the migrating one, seldom the owner of the page), processor
    call        innermost call it happened in, a row of the calls table; null: none seen
    episode     the folio's migration it belongs to, a row of the episodes table
    position    0, 1, … of a VMA visit in its walk, in the order of the rmap tree
    folio       kernel address of the folio walked; of the new one for remove_migration_ptes
    order       of the source folio; null: not seen
    vma, mm     kernel addresses; mm null where the probe did not record it
    addr        user address, bytes
    nr_pages    entries the operation covers, that of a PMD counting as one; of a visit, those it set or restored
    hit         visit: whether there was any; null for what is no visit
    known       whether both walks of the episode were seen, with no event lost in them; policies judge no other
    moved       whether the entries end on another folio; false: undone or a split, null: not known
    window      fork_copy, zap: during_walk, after_walk or unknown, against the walk that set the folio's entries
    certainty   observed: an event shows it; reconstructed: it follows from the life cycle, with no alternative left;
                inferred: it follows from events before and after, or was chosen among alternatives
    seq         provenance: position of the event in the source file; null if inferred
"""

import polars as pl

OPERATIONS: dict[str, str] = {
    "try_to_migrate.vma_visit": "one VMA visited by the rmap walk that sets migration entries (try_to_migrate_one)",
    "remove_migration_ptes.vma_visit": "one VMA visited by the rmap walk that restores PTEs (remove_migration_pte)",
    "migration_entry.set": "a present PTE (or PMD) replaced by a migration entry",
    "migration_entry.restore": "a migration entry replaced by a present PTE (or PMD)",
    "migration_entry.fork_copy": "a migration entry copied to a child by fork",
    "migration_entry.collect": "a migration entry set by migrate_vma_collect_pmd, which has no event of its own",
    "migration_entry.zap": "a migration entry cleared by munmap, exit or MADV_DONTNEED before it was restored",
    "folio.copy": "the contents of one folio copied",
    "counter.update": "one update of a folio's count of migration entries: a policy's own cost",
}

# A null order in episodes and a missing mm mean "not seen"; nothing stands for it.
SCHEMA: dict[str, pl.DataType] = {
    "op": pl.Enum(list(OPERATIONS)),
    "time_ns": pl.Int64(),
    "task": pl.Int32(),
    "cpu": pl.Int32(),
    "call": pl.Int64(),
    "episode": pl.Int64(),
    "position": pl.Int32(),
    "folio": pl.UInt64(),
    "order": pl.Int32(),
    "vma": pl.UInt64(),
    "mm": pl.UInt64(),
    "addr": pl.UInt64(),
    "nr_pages": pl.Int64(),
    "hit": pl.Boolean(),
    "known": pl.Boolean(),
    "moved": pl.Boolean(),
    "window": pl.Enum(["during_walk", "after_walk", "unknown"]),
    "certainty": pl.Enum(["observed", "reconstructed", "inferred"]),
    "seq": pl.UInt64(),
}
