//! Tags of L2's cached translations: a vpid02 for each vpid12 in use. SDM Vol. 3, "Virtual Processor Identifiers (VPIDs)".

use crate::invalidations::Invalidations;
use vmcs12::exit::Invalidation;

const SLOTS: usize = 15;
/// Tags are counted down from the top: L0's own, for L1, are at the bottom.
const FIRST: u16 = u16::MAX;
/// The tag of an L2 whose vmcs12 enables no VPID.
pub(crate) const UNTAGGED: u16 = FIRST - SLOTS as u16;

/// The vpid12s that have a vpid02. 0 is no VPID: a free slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vpids {
    slots: [u16; SLOTS],
    next: usize,
}

impl Vpids {
    fn tag(slot: usize) -> u16 {
        FIRST - slot as u16
    }

    /// The vpid02 for a vpid12, if it has one.
    pub(crate) fn lookup(&self, vpid12: u16) -> Option<u16> {
        self.slots.iter().position(|&held| held == vpid12 && vpid12 != 0).map(Self::tag)
    }

    /// The vpid02 for a vpid12. A new one may take the place of another, whose translations are forgotten.
    pub(crate) fn assign(&mut self, vpid12: u16, forget: &mut Invalidations) -> u16 {
        if let Some(vpid02) = self.lookup(vpid12) {
            return vpid02;
        }
        let slot = self.next;
        self.next = (slot + 1) % SLOTS;
        self.slots[slot] = vpid12;
        forget.push(Invalidation::Vpid(Self::tag(slot)));
        Self::tag(slot)
    }

    /// Every vpid02 in use.
    pub(crate) fn each(&self, mut with: impl FnMut(u16)) {
        for slot in (0..SLOTS).filter(|&slot| self.slots[slot] != 0) {
            with(Self::tag(slot));
        }
    }
}
