//! One leaf of ept02: what ept12 maps, as far as ept01 backs it with RAM.

use super::walk::{Leaf, Level};
use crate::ept01::Ept01;
use vmcs12::addr::{Gpa, Ngpa};
use vmcs12::arch::eptp::EptEntry;

/// A leaf entry and the level that it belongs at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Composed {
    /// The entry, in the architecture's format.
    pub entry: EptEntry,
    /// Its level in ept02.
    pub level: Level,
}

/// The ept02 leaf for `at`: rights and memory type from ept12, the largest page that lies in RAM and in ept12's page.
/// `None` if the page is not RAM.
pub fn compose(ept01: &Ept01, leaf: &Leaf, at: Ngpa) -> Option<Composed> {
    let mut level = leaf.level;
    loop {
        let frame = Gpa(leaf.target(at).0 & !(level.size() - 1));
        if ept01.backs(frame, level.size()) {
            return Some(Composed { entry: entry(leaf, frame, level), level });
        }
        if level == Level::PT {
            return None;
        }
        level = level.below();
    }
}

fn entry(leaf: &Leaf, frame: Gpa, level: Level) -> EptEntry {
    let kept = EptEntry::MEMORY_TYPE.mask() | EptEntry::IGNORE_PAT.mask();
    EptEntry(leaf.entry.0 & kept | u64::from(leaf.rights.bits()) | frame.0)
        .with(EptEntry::LARGE, level != Level::PT)
}
