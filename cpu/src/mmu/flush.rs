//! What drops cached translations. SDM Vol. 3, "Operations that Invalidate TLBs and Paging-Structure Caches",
//! "Operations that Invalidate Cached Mappings".

use super::tlb::{Context, Entry, GLOBAL, Key};
use crate::state::Cpu;
use vmcs12::exit::Invalidation;

fn any(_: &Entry) -> bool {
    true
}

fn is_global(entry: &Entry) -> bool {
    entry.frame & GLOBAL != 0
}

fn is_not_global(entry: &Entry) -> bool {
    !is_global(entry)
}

impl Cpu {
    /// INVLPG: the page in the current PCID, and global translations of it in every PCID.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        let (vpid, pcid) = (self.vpid, self.pcid());
        self.pool.each(|key| key.vpid == vpid && key.pcid == pcid, |context| context.drop_page(linear, any));
        self.pool
            .each(|key| key.vpid == vpid && key.pcid != pcid, |context| context.drop_page(linear, is_global));
    }

    /// INVPCID, individual-address: the page in one PCID, unless it is global.
    pub(crate) fn flush_pcid_page(&mut self, pcid: u16, linear: u64) {
        let vpid = self.vpid;
        let of_pcid = |key: &Key| key.vpid == vpid && key.pcid == pcid;
        self.pool.each(of_pcid, |context| context.drop_page(linear, is_not_global));
    }

    /// MOV to CR3 and INVPCID, single-context: everything of one PCID that is not global.
    pub(crate) fn flush_pcid(&mut self, pcid: u16) {
        let vpid = self.vpid;
        self.pool.each(|key| key.vpid == vpid && key.pcid == pcid, Context::clear_non_global);
    }

    /// INVPCID, all-context retaining globals.
    pub(crate) fn flush_retaining_globals(&mut self) {
        let vpid = self.vpid;
        self.pool.each(|key| key.vpid == vpid, Context::clear_non_global);
    }

    /// INVPCID, all-context; changes of CR0.PG and of the paging bits of CR4.
    pub(crate) fn flush_all(&mut self) {
        let vpid = self.vpid;
        self.pool.each(|key| key.vpid == vpid, Context::clear);
    }

    /// INVEPT and INVVPID by tag, for the VMM.
    pub fn invalidate(&mut self, what: Invalidation) {
        match what {
            Invalidation::Ept(root) => {
                self.guest_physical.clear();
                self.pool.each(|key| key.ept_root == root.page().0 | 1, Context::clear);
            }
            Invalidation::EptAll => {
                self.guest_physical.clear();
                self.pool.each(|key| key.ept_root != 0, Context::clear);
            }
            Invalidation::VpidAddress(vpid, address) => {
                self.pool.each(|key| key.vpid == vpid, |context| context.drop_page(address.0, any));
            }
            Invalidation::Vpid(vpid) => self.pool.each(|key| key.vpid == vpid, Context::clear),
            Invalidation::VpidRetainGlobals(vpid) => {
                self.pool.each(|key| key.vpid == vpid, Context::clear_non_global);
            }
            Invalidation::VpidAll => self.pool.each(|key| key.vpid != 0, Context::clear),
        }
    }
}
