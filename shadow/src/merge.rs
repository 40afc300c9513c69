//! vmcs01 and vmcs12 make vmcs02. SDM Vol. 3, "VM Entries" says what L1 asked for; L0's own needs come on top.

pub mod bitmaps;
pub mod controls;
pub(crate) mod fields;
mod guest;
mod tsc;

use crate::engine::{Engine, Host, Msrs};
use crate::vpid::UNTAGGED;
use vmcs12::addr::{Linear, Physical};
use vmcs12::control::{ENABLE_EPT, ENABLE_VPID, IA_32E_MODE_GUEST};
use vmcs12::exit::Invalidation;
use vmcs12::field::{Field, Value, Vmcs, table::*};

/// Writes a field unless it is right already: the processor looks again at what was written.
fn put<T: Value>(vmcs: &mut Vmcs, field: Field<T>, value: T) {
    if vmcs.get(field).raw() != value.raw() {
        vmcs.set(field, value);
    }
}

impl Engine {
    /// Makes vmcs02 for an entry with `vmcs12`, which has passed the checks.
    pub(crate) fn merge<P: Physical, L: Linear, M: Msrs>(&mut self, host: &mut Host<P, L, M>, vmcs12: &Vmcs) {
        let vmcs01 = &host.vmcs01.current;
        let ours = fields::controls_of(vmcs01);
        let vmcs02 = &mut *self.vmcs02.current;
        let is_merged = self.current.is_some_and(|current| current.is_merged)
            && self.merged_with == ours
            // The processor writes this control when L2 changes its mode.
            && vmcs02.has(IA_32E_MODE_GUEST) == vmcs12.has(IA_32E_MODE_GUEST);
        if !is_merged {
            controls::merge(vmcs02, vmcs01, vmcs12);
            fields::merge(vmcs02, vmcs01, vmcs12, self.ept.ept01());
            fields::merge_cr_masks(vmcs02, vmcs12, crate::cr::hidden_cr4(&self.offered, &self.machine));
            tsc::merge(vmcs02, vmcs01, vmcs12);
            self.merged_with = ours;
        }
        fields::merge_event(vmcs02, vmcs12);
        guest::merge(vmcs02, vmcs01, vmcs12);
        self.start_timer(vmcs12);
        self.merge_msr_bitmaps(host, vmcs12);
        self.merge_translation(host, vmcs12);
        if let Some(current) = &mut self.current {
            current.is_merged = true;
        }
    }

    /// ept02 and vpid02.
    fn merge_translation<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        vmcs12: &Vmcs,
    ) {
        let vmcs01 = &host.vmcs01.current;
        let pointer = if vmcs12.has(ENABLE_EPT) {
            self.ept.pointer(host.memory, vmcs12.get(EPTP), &mut self.invalidations)
        } else {
            // L2-physical is L1-physical: L1 shadows the page tables of its guest.
            guest::load_pdptes(&mut self.vmcs02.current, host.memory, self.ept.ept01());
            vmcs01.get(EPTP)
        };
        put(&mut self.vmcs02.current, EPTP, pointer);
        let vpid02 = if vmcs12.has(ENABLE_VPID) {
            self.vpids.assign(vmcs12.get(VPID), &mut self.invalidations)
        } else {
            UNTAGGED
        };
        put(&mut self.vmcs02.current, VPID, vpid02);
        self.forget_untagged(vmcs01, vmcs12);
    }

    /// Without VPID, VM entry and VM exit forget the translations of L1 and L2 alike.
    /// SDM Vol. 3, "Operations that Invalidate Cached Mappings".
    pub(crate) fn forget_untagged(&mut self, vmcs01: &Vmcs, vmcs12: &Vmcs) {
        if !vmcs12.has(ENABLE_VPID) {
            self.invalidations.push(Invalidation::Vpid(UNTAGGED));
            self.invalidations.push(Invalidation::Vpid(vmcs01.get(VPID)));
        }
    }
}
