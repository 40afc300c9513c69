//! An exit to L1. SDM Vol. 3, "VM Exits": the exit is recorded in vmcs12, L2's state is saved there, and L1 gets its
//! host state in vmcs01.

mod load_host;
mod record;
mod sync;

pub(crate) use record::Exit12;

use crate::engine::{Engine, Host, L2Exit, Msrs, Operation};
use load_host::Inherited;
use vmcs12::addr::{Linear, Physical};
use vmcs12::arch::efer;
use vmcs12::arch::state::InterruptibilityState;
use vmcs12::control::*;
use vmcs12::error::Abort;
use vmcs12::exit::Reason;
use vmcs12::field::{Vmcs, table::*};
use vmcs12::region;

impl Engine {
    /// Gives L1 an exit from L2.
    pub(crate) fn reflect<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        exit: Exit12,
    ) -> L2Exit {
        self.counters.reflected.add(exit.reason);
        self.operation = Operation::Root;
        // The cached vmcs12 leaves its place for the time of the exit: its fields are read while vmcs01 is written.
        let Some(mut vmcs12) = host.vmcs01.linked.take() else { return L2Exit::Abort(Abort::CorruptVmcs) };
        let left = self.leave_l2(host, &mut vmcs12, exit);
        host.vmcs01.linked = Some(vmcs12);
        match left {
            Ok(()) => L2Exit::Reflected,
            Err(abort) => L2Exit::Abort(self.abort(host, abort)),
        }
    }

    fn leave_l2<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        vmcs12: &mut Vmcs,
        exit: Exit12,
    ) -> Result<(), Abort> {
        self.stop_timer();
        record::record(vmcs12, &self.vmcs02.current, exit);
        sync::sync(vmcs12, &self.vmcs02.current, &self.offered);
        if let Err(bad) = self.store_msrs(host, vmcs12) {
            self.broken_rule = Some(bad.rule.id);
            return Err(Abort::SaveGuestMsrs);
        }
        let was_long = self.vmcs02.current.get(GUEST_IA32_EFER) & efer::LMA != 0;
        if was_long && !vmcs12.has(HOST_ADDRESS_SPACE_SIZE) {
            return Err(Abort::HostAddressSpace);
        }
        let inherited = Inherited::from(&*self.vmcs02.current);
        let nmi_blocked = exit.is_nmi() || self.blocks_nmis_of_l1(vmcs12);
        self.return_to_l1(host, vmcs12, inherited, nmi_blocked)
    }

    /// Without virtual NMIs, L2's blocking by NMI is the processor's, and so L1's.
    fn blocks_nmis_of_l1(&self, vmcs12: &Vmcs) -> bool {
        let state = self.vmcs02.current.get(GUEST_INTERRUPTIBILITY_STATE);
        !vmcs12.has(VIRTUAL_NMIS) && state.get(InterruptibilityState::NMI)
    }

    /// Loads the host state of vmcs12, and the MSR list.
    fn return_to_l1<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        vmcs12: &Vmcs,
        inherited: Inherited,
        nmi_blocked: bool,
    ) -> Result<(), Abort> {
        let vmcs01 = &mut host.vmcs01.current;
        load_host::load_host(vmcs01, vmcs12, &self.machine, &self.offered, inherited);
        let blocking = InterruptibilityState::default().with(InterruptibilityState::NMI, nmi_blocked);
        vmcs01.set(GUEST_INTERRUPTIBILITY_STATE, blocking);
        load_host::load_pdptes(vmcs01, host.memory, self.ept.ept01(), &self.offered)?;
        if let Err(bad) = self.load_msrs_on_exit(host, vmcs12) {
            self.broken_rule = Some(bad.rule.id);
            return Err(Abort::LoadHostMsrs);
        }
        self.forget_untagged(&host.vmcs01.current, vmcs12);
        Ok(())
    }

    /// VM entry failed after the checks on controls and host state: L1 gets an exit, and L2's state in vmcs12 is as it
    /// was. SDM Vol. 3, "VM-Entry Failures During or After Loading Guest State".
    pub(crate) fn fail_entry<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        mut vmcs12: Box<Vmcs>,
        reason: Reason,
        qualification: u64,
    ) -> Result<(), Abort> {
        self.counters.reflected.add(reason);
        record::record_failed_entry(&mut vmcs12, reason, qualification);
        let inherited = Inherited::from(&*host.vmcs01.current);
        let state = host.vmcs01.current.get(GUEST_INTERRUPTIBILITY_STATE);
        let left = self.return_to_l1(host, &vmcs12, inherited, state.get(InterruptibilityState::NMI));
        host.vmcs01.linked = Some(vmcs12);
        left.map_err(|abort| self.abort(host, abort))
    }

    /// VMX abort: the indicator goes to the VMCS region, and nothing else does.
    fn abort<P: Physical, L: Linear, M: Msrs>(&mut self, host: &mut Host<P, L, M>, abort: Abort) -> Abort {
        if let Some(pointer) = self.current_pointer() {
            let at = self.ept.ept01().machine(pointer).plus(region::ABORT_INDICATOR as u64);
            host.memory.write_u32(at, abort as u32);
        }
        abort
    }
}
