//! Shadow EPT: ept02 is ept12 over ept01, filled where L2 touches it. SDM Vol. 3, "The Extended Page Table Mechanism (EPT)".

pub mod cache;
pub mod compose;
pub mod pool;
pub mod walk;

use crate::ept01::Ept01;
use crate::invalidations::Invalidations;
use cache::Cache;
use compose::compose;
use vmcs12::addr::{Gpa, Ngpa, Pa, Physical};
use vmcs12::arch::eptp::Eptp;
use vmcs12::exit::qualification::EptViolation;
use walk::{Format, Rights, Walk, walk};

/// What an access of L2 that ept02 stopped comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// ept02 has it now.
    Mapped,
    /// ept12 forbids it: an EPT violation for L1, with this qualification.
    Violation(EptViolation),
    /// An entry of ept12 is misconfigured: L1 gets exit 49.
    Misconfiguration,
    /// ept12 allows it, and leads to L1-physical addresses that are not RAM.
    Hole(Gpa),
}

/// The cached ept02s of one vCPU and the rules by which ept12 is read.
pub struct ShadowEpt {
    ept01: Ept01,
    format: Format,
    cache: Cache,
}

impl ShadowEpt {
    /// Tables are made of the pages from `arena` on.
    pub fn new(ept01: Ept01, format: Format, arena: std::ops::Range<Pa>) -> Self {
        Self { ept01, format, cache: Cache::new(arena) }
    }

    /// Where L1's physical memory is.
    pub fn ept01(&self) -> &Ept01 {
        &self.ept01
    }

    /// The pointer to the ept02 for this ept12: what vmcs02 holds.
    pub fn pointer<P: Physical>(&mut self, memory: &P, eptp12: Eptp, forget: &mut Invalidations) -> Eptp {
        let table = self.cache.root(memory, eptp12, forget);
        Eptp::default()
            .with(Eptp::MEMORY_TYPE, vmcs12::arch::eptp::memory_type::WB)
            .with(Eptp::WALK_LENGTH_MINUS_1, eptp12.get(Eptp::WALK_LENGTH_MINUS_1))
            .with(Eptp::ACCESSED_DIRTY, eptp12.get(Eptp::ACCESSED_DIRTY))
            .with(Eptp::ROOT, table.0 >> 12)
    }

    /// L2 made an access that ept02 stopped: walks ept12, and maps the page if ept12 allows the access.
    pub fn fill<P: Physical>(
        &mut self,
        memory: &P,
        eptp12: Eptp,
        at: Ngpa,
        stopped: EptViolation,
        forget: &mut Invalidations,
    ) -> Filled {
        match walk(memory, &self.ept01, self.format, eptp12, at, Rights::from(stopped)) {
            Walk::Misconfigured => Filled::Misconfiguration,
            Walk::Denied(rights) => Filled::Violation(shown(stopped, rights)),
            Walk::Allowed(leaf) => match compose(&self.ept01, &leaf, at) {
                Some(entry) => {
                    self.cache.map(memory, eptp12, at, entry, forget);
                    Filled::Mapped
                }
                None => Filled::Hole(leaf.target(at)),
            },
        }
    }

    /// INVEPT single-context: drops what was composed from the ept12 with this root.
    pub fn drop_root<P: Physical>(&mut self, memory: &P, root12: Pa, forget: &mut Invalidations) {
        self.cache.empty_where(memory, forget, |eptp12| eptp12.root() == root12);
    }

    /// INVEPT all-context: drops everything.
    pub fn drop_all<P: Physical>(&mut self, memory: &P, forget: &mut Invalidations) {
        self.cache.empty_where(memory, forget, |_| true);
    }
}

/// The qualification as the processor would have reported it had it walked ept12 itself.
fn shown(stopped: EptViolation, rights: Rights) -> EptViolation {
    stopped
        .with(EptViolation::READABLE, rights.cover(Rights::READ))
        .with(EptViolation::WRITABLE, rights.cover(Rights::WRITE))
        .with(EptViolation::EXECUTABLE, rights.cover(Rights::EXECUTE))
        .with(EptViolation::USER_EXECUTABLE, false)
}
