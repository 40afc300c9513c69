//! MSR bitmaps of vmcs02: an access exits if it does for L0 or for L1. SDM Vol. 3, "MSR-Bitmap Address".

use super::put;
use crate::engine::{Engine, Host, Msrs};
use vmcs12::addr::{Gpa, Linear, Pa, Physical};
use vmcs12::control::USE_MSR_BITMAPS;
use vmcs12::field::{Vmcs, table::ADDRESS_OF_MSR_BITMAPS};

const BYTES: usize = 4096;
type Page = [u8; BYTES];

/// L1's and L0's bitmaps as they were merged last; while neither has changed, the page for vmcs02 is right as it is.
pub(crate) struct MsrBitmaps {
    /// Where L0's were read; `None` if they have to be read again.
    ours_at: Option<Pa>,
    ours: Box<Page>,
    theirs: Box<Page>,
    fresh: Box<Page>,
    merged: bool,
}

impl Default for MsrBitmaps {
    fn default() -> Self {
        let page = || Box::new([0; BYTES]);
        Self { ours_at: None, ours: page(), theirs: page(), fresh: page(), merged: false }
    }
}

/// Reads a page; is it another than it was?
fn reread<P: Physical>(memory: &P, at: Pa, held: &mut Box<Page>, fresh: &mut Box<Page>) -> bool {
    memory.read(at, &mut fresh[..]);
    let changed = held != fresh;
    if changed {
        std::mem::swap(held, fresh);
    }
    changed
}

impl Engine {
    /// L0 has written its own MSR bitmaps in place. Without a word from it they are read only once.
    pub fn msr_bitmaps_changed(&mut self) {
        self.msr_bitmaps.ours_at = None;
    }

    /// L1 may write its bitmaps at any time, and without telling: they are read for each entry.
    pub(super) fn merge_msr_bitmaps<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        vmcs12: &Vmcs,
    ) {
        put(&mut self.vmcs02.current, ADDRESS_OF_MSR_BITMAPS, self.pages.msr);
        if !self.vmcs02.current.has(USE_MSR_BITMAPS) {
            return;
        }
        let at01 = host.vmcs01.current.get(ADDRESS_OF_MSR_BITMAPS);
        let at12 = self.ept.ept01().machine(Gpa(vmcs12.get(ADDRESS_OF_MSR_BITMAPS).0));
        let MsrBitmaps { ours_at, ours, theirs, fresh, merged } = &mut self.msr_bitmaps;
        if *ours_at != Some(at01) {
            host.memory.read(at01, &mut ours[..]);
            (*ours_at, *merged) = (Some(at01), false);
        }
        if reread(host.memory, at12, theirs, fresh) || !*merged {
            for (byte, (a, b)) in fresh.iter_mut().zip(ours.iter().zip(theirs.iter())) {
                *byte = a | b;
            }
            host.memory.write(self.pages.msr, &fresh[..]);
            *merged = true;
        }
    }
}
