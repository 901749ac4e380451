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
    page        rmap.remove: kernel address of the first struct page; it covers nr_pages of them
    phase       what the kernel was at: zap (munmap, exit, exec, MADV_DONTNEED, …), try_to_migrate, try_to_unmap,
                fault (copy on write, …) or other. Of rmap.remove and deferred_split.*
    run         rmap.remove: number of the run; rows of one are neighbours in one folio, VMA and page table, taken out
                one after the other in one phase by one task. What a kernel that batches could do in one call
    ends_table  rmap.remove: whether the last page that it covers is the last of its page table; null: not known
    life        of a large folio, from its first mapping to its last removal, numbered; null: small
    unmapped    rmap.remove of a large folio: pages that no mapping is left of after it; null: not known
    left        rmap.remove of a large folio: whether a page of it is still mapped after it; null: not known
    anon        whether the folio is anonymous; null: not known
    lazyfree    whether it is anonymous and MADV_FREE was called on it, so that reclaim may drop it; null: not known
    batched     rmap.remove, try_to_unmap.vma_visit: whether the traced kernel takes out a run of this phase at once
                (``Replay.kernel_has``); null: not known
    stopped     try_to_unmap.vma_visit: whether it ended the walk for a page that it could not unmap; null: not probed
    bytes       folio.copy: how much was copied; null: order or page size not known
    seq         provenance: position of the event in the source file; null if inferred

What is not an operation of its own, but an amount that operations bring with them, is in ``AMOUNTS``: a sum over rows.
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
    "try_to_migrate.walk": "one folio's rmap walk that sets migration entries, where its visits were not recorded",
    "remove_migration_ptes.walk": "one folio's rmap walk that restores PTEs, where its visits were not recorded",
    "remove_migration_ptes.walk_to_last_entry": "such a walk that stops behind the last entry: a policy's own",
    "try_to_unmap.vma_visit": "one VMA visited by the rmap walk of reclaim (try_to_unmap_one)",
    "rmap.remove": "one call that takes pages of one folio out of the rmap of one VMA (folio_remove_rmap_ptes, _pmd)",
    "deferred_split.enqueue": "a large folio found partially mapped and queued to be split (deferred_split_folio)",
    "deferred_split.call": "a call of deferred_split_folio that finds it queued already, or not partially mapped",
    "tlb.flush": "a flush of the processor's own TLB (tlb_flush reasons 2 and 3)",
    "tlb.shootdown": "an IPI to other processors to flush their TLBs (tlb_flush reason 4: one to all of them)",
    "counter.update": "one update of a folio's count of migration entries: a policy's own cost",
    "folio.copy_batch": "the contents of a batch of folios copied in one call: a policy's own",
    "folio.copy_batched": "one folio's contents copied in such a call, and its place in the batch: a policy's own",
    "page.trylock": "one attempt to lock a page, a second one included: a policy's own",
    "page.check": "one check of a page's references before it is migrated: a policy's own",
    "folio.move_attempt": "one more attempt to move a folio: a policy's own",
}

AMOUNTS: dict[str, str] = {
    "rmap.remove_pages": "pages taken out of the rmap by rmap.remove",
    "rmap.atomic": "atomic updates of mapcounts by rmap.remove of PTEs of large folios (MODEL.md D.2)",
    "pte.clear": "PTEs (or PMDs) cleared for good by zap and try_to_unmap",
    "gather.slot": "slots of the mmu_gather taken by zap: two for a range, one for a page",
    "tlb.pend": "deferred TLB flushes noted by try_to_unmap, at most: none where it flushes at once",
    "folio.copy_bytes": "bytes copied by folio.copy",
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
    "page": pl.UInt64(),
    "phase": pl.Enum(["zap", "try_to_migrate", "try_to_unmap", "fault", "other"]),
    "run": pl.Int64(),
    "ends_table": pl.Boolean(),
    "life": pl.Int64(),
    "unmapped": pl.Int64(),
    "left": pl.Boolean(),
    "anon": pl.Boolean(),
    "lazyfree": pl.Boolean(),
    "batched": pl.Boolean(),
    "stopped": pl.Boolean(),
    "bytes": pl.Int64(),
    "seq": pl.UInt64(),
}


def amounts(ops: pl.DataFrame) -> pl.DataFrame:
    """Int64[n_ops] each: what every operation of ``ops``, as traced, brings with it; columns as ``AMOUNTS``."""
    remove, zap, unmap = pl.col("op") == "rmap.remove", pl.col("phase") == "zap", pl.col("phase") == "try_to_unmap"
    # a removal in a known phase that is in no run is that of a PMD
    entries = pl.when(pl.col("run").is_null()).then(1).otherwise("nr_pages")
    found = {
        "rmap.remove_pages": pl.when(remove).then("nr_pages"),
        "rmap.atomic": pl.when(remove & pl.col("life").is_not_null() & pl.col("run").is_not_null()).then(
            1 + pl.col("nr_pages") + (pl.col("unmapped") > 0).fill_null(value=False)
        ),
        "pte.clear": pl.when(remove & (zap | unmap)).then(entries),
        "gather.slot": pl.when(remove & zap).then(pl.min_horizontal(entries, 2)),
        "tlb.pend": pl.when(unmap & (remove | pl.col("stopped").fill_null(value=False))).then(1),
        "folio.copy_bytes": pl.col("bytes"),
    }
    return ops.select(expr.fill_null(0).cast(pl.Int64).alias(name) for name, expr in found.items())
