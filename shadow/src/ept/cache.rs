//! The ept02s of one vCPU, each for one EPTP12, in tables of the architecture's format.

use super::compose::Composed;
use super::pool::{Chain, Pool};
use super::walk::Level;
use crate::invalidations::Invalidations;
use std::ops::Range;
use vmcs12::addr::{Ngpa, Pa, Physical};
use vmcs12::arch::eptp::{EptEntry, Eptp};
use vmcs12::exit::Invalidation;

const ROOTS: usize = 8;
/// A root and the tables below it down to one 4-KByte page, for each cached root: below that nothing can be mapped.
const LEAST_PAGES: u64 = (ROOTS * Level::MAX) as u64;

/// One ept02.
struct Root {
    /// The whole EPTP12 it was composed for; its bits beside the address change what is composed. `None`: not in use.
    eptp12: Option<Eptp>,
    table: Pa,
    /// The tables below the root.
    tables: Chain,
    /// When it was last entered with.
    used: u64,
}

/// Cached ept02s; the one used longest ago makes room for a new one.
pub struct Cache {
    roots: [Root; ROOTS],
    pool: Pool,
    now: u64,
}

impl Cache {
    /// A cache whose tables are pages of `arena`.
    ///
    /// # Panics
    /// If the arena is too small to map one page under each root.
    pub fn new(arena: Range<Pa>) -> Self {
        let pages = (arena.end.0 - arena.start.0) / 0x1000;
        assert!(pages >= LEAST_PAGES, "the arena has room for {LEAST_PAGES} tables");
        let mut pool = Pool::new(arena);
        let mut roots_chain = Chain::default();
        let roots = std::array::from_fn(|_| Root {
            eptp12: None,
            table: pool.take(&mut roots_chain).expect("the arena's size was checked"),
            tables: Chain::default(),
            used: 0,
        });
        Self { roots, pool, now: 0 }
    }

    /// The root table of the ept02 for this ept12.
    pub fn root<P: Physical>(&mut self, memory: &P, eptp12: Eptp, forget: &mut Invalidations) -> Pa {
        let index = self.index(memory, eptp12, forget);
        self.now += 1;
        self.roots[index].used = self.now;
        self.roots[index].table
    }

    fn index<P: Physical>(&mut self, memory: &P, eptp12: Eptp, forget: &mut Invalidations) -> usize {
        if let Some(index) = self.roots.iter().position(|root| root.eptp12 == Some(eptp12)) {
            return index;
        }
        let oldest = (0..ROOTS).min_by_key(|&index| self.roots[index].used).unwrap_or(0);
        self.empty(memory, oldest, forget);
        self.roots[oldest].eptp12 = Some(eptp12);
        oldest
    }

    /// Drops all that the chosen ept02s map.
    pub fn empty_where<P: Physical>(
        &mut self,
        memory: &P,
        forget: &mut Invalidations,
        chosen: impl Fn(Eptp) -> bool,
    ) {
        for index in 0..ROOTS {
            if self.roots[index].eptp12.is_some_and(&chosen) {
                self.empty(memory, index, forget);
            }
        }
    }

    fn empty<P: Physical>(&mut self, memory: &P, index: usize, forget: &mut Invalidations) {
        let root = &mut self.roots[index];
        clear(memory, root.table);
        self.pool.give_back(&mut root.tables);
        forget.push(Invalidation::Ept(root.table));
    }

    /// Maps a page in the ept02 for this ept12.
    pub fn map<P: Physical>(
        &mut self,
        memory: &P,
        eptp12: Eptp,
        at: Ngpa,
        leaf: Composed,
        forget: &mut Invalidations,
    ) {
        let index = self.index(memory, eptp12, forget);
        if self.try_map(memory, index, at, leaf, forget).is_none() {
            // The pool is empty: all that is mapped is dropped and will be filled again.
            self.empty_where(memory, forget, |_| true);
            let mapped = self.try_map(memory, index, at, leaf, forget);
            assert!(mapped.is_some(), "an empty pool has the tables for one page");
        }
    }

    /// Puts the leaf in; `None` if a table is needed and there is no page left.
    fn try_map<P: Physical>(
        &mut self,
        memory: &P,
        index: usize,
        at: Ngpa,
        leaf: Composed,
        forget: &mut Invalidations,
    ) -> Option<()> {
        let root = &mut self.roots[index];
        let walk_length = root.eptp12.map_or(3, |eptp| eptp.get(Eptp::WALK_LENGTH_MINUS_1).clamp(3, 4)) + 1;
        let (mut table, mut level) = (root.table, Level(walk_length));
        while level > leaf.level {
            let place = Pa(level.entry(table.0, at));
            let entry = EptEntry(memory.read_u64(place));
            table = if points_to_table(entry) {
                Pa(entry.0 & EptEntry::FRAME.mask())
            } else {
                let fresh = self.pool.take(&mut root.tables)?;
                clear(memory, fresh);
                memory.write_u64(place, fresh.0 | TABLE_RIGHTS);
                if entry != EptEntry::default() {
                    forget.push(Invalidation::Ept(root.table));
                }
                fresh
            };
            level = level.below();
        }
        let place = Pa(level.entry(table.0, at));
        if points_to_table(EptEntry(memory.read_u64(place))) && level != Level::PT {
            // Smaller pages were mapped here before; the tables stay with the root until it is emptied.
            forget.push(Invalidation::Ept(root.table));
        }
        memory.write_u64(place, leaf.entry.0);
        Some(())
    }
}

/// A table entry of ept02 allows everything: the leaf alone decides.
const TABLE_RIGHTS: u64 = 0b111;

fn points_to_table(entry: EptEntry) -> bool {
    entry.0 & TABLE_RIGHTS != 0 && !entry.get(EptEntry::LARGE)
}

fn clear<P: Physical>(memory: &P, table: Pa) {
    memory.write(table, &[0; 0x1000]);
}
