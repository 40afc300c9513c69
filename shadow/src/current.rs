//! The current vmcs12: loaded from guest memory at VMPTRLD, linked to vmcs01 so that L1's VMREAD and VMWRITE go to it
//! without an exit, and written back when it is current no longer. SDM Vol. 3, "VMCS Shadowing".

use crate::engine::{Engine, Host, Msrs};
use crate::instruction::{Named, is_writable};
use vmcs12::addr::{Gpa, Linear, Pa, Physical};
use vmcs12::caps::VmxBasic;
use vmcs12::check::NO_LINK;
use vmcs12::control::VMCS_SHADOWING;
use vmcs12::field::table::*;
use vmcs12::region::{self, LaunchState};

/// What is known of the current vmcs12 beside its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Current {
    /// The current-VMCS pointer.
    pub(crate) pointer: Gpa,
    pub(crate) launch_state: LaunchState,
    /// A shadow VMCS: not to be entered.
    pub(crate) is_shadow: bool,
    /// The mode in which L1 was when controls and host state last passed the checks. They need not be checked again
    /// while L1 writes none of them.
    pub(crate) checked_in: Option<Mode>,
    /// vmcs02 has these controls.
    pub(crate) is_merged: bool,
}

/// The mode of L1 as far as the checks of VM entry depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// IA-32e mode is active.
    Long,
    /// It is not.
    Legacy,
}

impl Engine {
    /// The current-VMCS pointer, if there is one.
    pub fn current_pointer(&self) -> Option<Gpa> {
        self.current.map(|current| current.pointer)
    }

    pub(crate) fn is_current(&self, pointer: Gpa) -> bool {
        self.current_pointer() == Some(pointer)
    }

    /// Loads the vmcs12 at `pointer`.
    pub(crate) fn make_current<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        pointer: Gpa,
    ) {
        host.memory.read(self.ept.ept01().machine(pointer), &mut self.region[..]);
        let mut vmcs12 = self.vacant.take().unwrap_or_default();
        *vmcs12 = region::load(&self.region);
        for &field in &self.absent {
            vmcs12.set_raw(field, 0);
        }
        self.current = Some(Current {
            pointer,
            launch_state: region::launch_state(&self.region),
            is_shadow: region::is_shadow(&self.region),
            checked_in: None,
            is_merged: false,
        });
        host.vmcs01.linked = Some(vmcs12);
        self.link(host, self.pages.link);
    }

    /// Writes the current vmcs12 back to guest memory; there is none afterwards.
    pub(crate) fn release_current<P: Physical, L: Linear, M: Msrs>(&mut self, host: &mut Host<P, L, M>) {
        self.write_back(host);
        self.current = None;
        if let Some(vmcs12) = host.vmcs01.linked.take() {
            self.vacant = Some(vmcs12);
        }
        self.link(host, Pa(NO_LINK));
    }

    /// Writes the current vmcs12 back to guest memory; it stays current. For whoever looks at the memory: a dump, an
    /// abort.
    pub fn write_back<P: Physical, L: Linear, M: Msrs>(&mut self, host: &mut Host<P, L, M>) {
        let (Some(current), Some(vmcs12)) = (self.current, &host.vmcs01.linked) else { return };
        let at = self.ept.ept01().machine(current.pointer);
        host.memory.read(at, &mut self.region[..]);
        region::store(vmcs12, &mut self.region);
        region::set_launch_state(&mut self.region, current.launch_state);
        host.memory.write(at, &self.region[..]);
    }

    /// Points vmcs01 at its linked VMCS, or at none. VMREAD and VMWRITE exit while there is none.
    fn link<P: Physical, L: Linear, M: Msrs>(&self, host: &mut Host<P, L, M>, to: Pa) {
        let vmcs01 = &mut host.vmcs01.current;
        let shadows = to != Pa(NO_LINK) && self.machine.can_be_one(VMCS_SHADOWING);
        vmcs01.set_control(VMCS_SHADOWING, shadows);
        vmcs01.set(VMCS_LINK_POINTER, if shadows { to } else { Pa(NO_LINK) });
        vmcs01.set(VMREAD_BITMAP_ADDRESS, self.pages.vmread);
        vmcs01.set(VMWRITE_BITMAP_ADDRESS, self.pages.vmwrite);
    }

    /// Fills the pages that vmcs01 points to: the header of a shadow VMCS, and the bitmaps, in which 1 means an exit.
    pub(crate) fn prepare_pages<P: Physical>(&self, memory: &P) {
        let mut page = [0; region::SIZE];
        let revision = self.machine.basic.get(VmxBasic::REVISION) | region::SHADOW_INDICATOR;
        page[region::REVISION..region::REVISION + 4].copy_from_slice(&revision.to_le_bytes());
        memory.write(self.pages.link, &page);
        memory.write(self.pages.vmread, &self.access_bitmap(|_| true));
        let writable = |named: Named| is_writable(named.field(), &self.offered);
        memory.write(self.pages.vmwrite, &self.access_bitmap(writable));
        memory.write(self.pages.msr, &[0xff; region::SIZE]);
    }

    /// Bit n is 0 where the processor may access the field with encoding n by itself: whole fields that exist.
    fn access_bitmap(&self, may: impl Fn(Named) -> bool) -> [u8; region::SIZE] {
        let mut bitmap = [0xff; region::SIZE];
        for encoding in 0..bitmap.len() * 8 {
            let named = Named::from_encoding(encoding as u64, &self.offered);
            if named.is_some_and(|named| named.is_full() && may(named)) {
                bitmap[encoding / 8] &= !(1 << (encoding % 8));
            }
        }
        bitmap
    }
}
