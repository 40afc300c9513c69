//! VM entry: checks, loading of guest state, event injection. SDM Vol. 3, "VM Entries".

use super::Controls;
use crate::bus::Bus;
use crate::fault::Delivery;
use crate::mmu::tlb;
use crate::state::{Cpu, Stop, Time};
use vmcs12::addr::Physical;
use vmcs12::arch::event::{EventKind, InjectedEvent};
use vmcs12::arch::segment::{Segment, SegmentRegister};
use vmcs12::arch::state::{Activity, InterruptibilityState, PendingDebugExceptions};
use vmcs12::arch::{cr, efer};
use vmcs12::caps::VmxMisc;
use vmcs12::check::{self, Ctx, Entrant};
use vmcs12::control::*;
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Budget, Cause, Exit, Reason};
use vmcs12::field::table::*;
use vmcs12::field::{Group, Vmcs, VmcsSet};

impl Controls {
    /// Decodes a VMCS's controls.
    fn from_vmcs(vmcs: &Vmcs) -> Self {
        let mut controls = Self {
            pin: vmcs.controls(Word::PinBased) as u32,
            primary: vmcs.controls(Word::Primary) as u32,
            secondary: vmcs.controls(Word::Secondary) as u32,
            exit: vmcs.controls(Word::Exit) as u32,
            entry: vmcs.controls(Word::Entry) as u32,
            exception_bitmap: vmcs.get(EXCEPTION_BITMAP),
            windows: false,
            monitor_trap: false,
        };
        controls.windows = controls.has(INTERRUPT_WINDOW_EXITING) || controls.has(NMI_WINDOW_EXITING);
        controls.monitor_trap = controls.has(MONITOR_TRAP_FLAG);
        controls
    }
}

impl Cpu {
    /// VM entry under `vmcs.current`, until the next VM exit or the end of `until`; guest state and exit information
    /// are then in `vmcs.current`.
    pub fn enter(&mut self, vmcs: &mut VmcsSet, state: &mut CpuState, until: Budget, time: &Time) -> Exit {
        if let Some(cause) = self.refuse(&vmcs.current) {
            return Exit { cause, retired: 0 };
        }
        self.begin(vmcs, state, time, until.0);
        let cause = self.inject().unwrap_or_else(|| self.run_guest());
        self.end(cause)
    }

    /// Delivers the event that `vmcs.current` injects or, if it injects none, executes exactly the instruction at RIP,
    /// with accesses to physical holes going to `bus`.
    pub fn complete(
        &mut self,
        vmcs: &mut VmcsSet,
        state: &mut CpuState,
        time: &Time,
        bus: &mut dyn Bus,
    ) -> Exit {
        self.begin(vmcs, state, time, 1);
        // SAFETY: the pointer is cleared below, before the borrow that it was made from ends; nothing keeps it.
        self.bus = Some(unsafe { std::mem::transmute::<*mut dyn Bus, *mut (dyn Bus + 'static)>(bus) });
        self.guest_physical.clear();
        let cause = match injects(self.vmcs()) {
            true => self.inject().unwrap_or_else(|| self.end_of_budget()),
            false => self.run(),
        };
        self.bus = None;
        self.guest_physical.clear();
        self.end(cause)
    }

    /// The checks of VM entry; a VMCS that has not been written since they last passed passes again.
    fn refuse(&self, vmcs: &Vmcs) -> Option<Cause> {
        let clean = |group| !vmcs.is_dirty(group);
        if clean(Group::Control) && clean(Group::Guest) && clean(Group::Host) && !injects(vmcs) {
            return None;
        }
        let entrant = Entrant { long_mode: true, current_vmcs: 0 };
        let read = |at, into: &mut [u8]| self.memory.read(vmcs12::addr::Pa(at), into);
        let ctx = Ctx::new(vmcs, &self.model.capabilities, entrant, read);
        if let Err(refusal) = check::controls_and_host(&ctx) {
            return Some(Cause::Refused(refusal.error as u32, refusal.rule.id));
        }
        check::guest(&ctx)
            .err()
            .map(|failure| Cause::EntryFailure(Reason::EntryFailureGuestState, failure.rule.id))
    }

    fn begin(&mut self, vmcs: &mut VmcsSet, state: &mut CpuState, time: &Time, budget: u64) {
        for page in self.memory.take_written_code() {
            self.note_store(page.0, 4096);
        }
        self.time = *time;
        self.retired = 0;
        self.rep_limit = 0;
        self.stop = Stop::Continue;
        self.gpr[..16].copy_from_slice(&state.gpr);
        self.pkru = state.pkru;
        self.load_guest(&vmcs.current, state);
        (self.vmcs, self.state) = (vmcs, state);
        let timer = self.preemption_limit();
        self.set_limit(budget.min(timer));
        self.rep_limit = self.soft_limit;
        self.timer_limit = timer;
    }

    /// SDM Vol. 3, "Loading Guest State".
    fn load_guest(&mut self, vmcs: &Vmcs, state: &CpuState) {
        self.controls = Controls::from_vmcs(vmcs);
        self.cr0 = vmcs.get(GUEST_CR0);
        self.cr3 = vmcs.get(GUEST_CR3);
        self.cr4 = vmcs.get(GUEST_CR4);
        self.dr7 = vmcs.get(GUEST_DR7);
        self.debugctl = vmcs.get(GUEST_IA32_DEBUGCTL);
        self.rip = vmcs.get(GUEST_RIP);
        self.gpr[vmcs12::cpu_state::gpr::RSP] = vmcs.get(GUEST_RSP);
        self.load_efer(vmcs);
        self.pat =
            if self.controls.has(LOAD_IA32_PAT_ON_ENTRY) { vmcs.get(GUEST_IA32_PAT) } else { state.pat };
        for register in SegmentRegister::ALL {
            let fields = register.fields();
            self.segments[register as usize] = Segment {
                base: vmcs.get(fields.base),
                limit: vmcs.get(fields.limit),
                rights: vmcs.get(fields.rights),
                selector: vmcs.get(fields.selector),
            };
        }
        self.refresh_bases();
        self.gdtr = (vmcs.get(GUEST_GDTR_BASE), vmcs.get(GUEST_GDTR_LIMIT));
        self.idtr = (vmcs.get(GUEST_IDTR_BASE), vmcs.get(GUEST_IDTR_LIMIT));
        self.sysenter = (
            u64::from(vmcs.get(GUEST_IA32_SYSENTER_CS)),
            vmcs.get(GUEST_IA32_SYSENTER_ESP),
            vmcs.get(GUEST_IA32_SYSENTER_EIP),
        );
        self.ept = self.controls.has(ENABLE_EPT);
        self.eptp = vmcs.get(EPTP);
        self.pdpte =
            [vmcs.get(GUEST_PDPTE0), vmcs.get(GUEST_PDPTE1), vmcs.get(GUEST_PDPTE2), vmcs.get(GUEST_PDPTE3)];
        // SDM Vol. 3, "Loading Page-Directory-Pointer-Table Entries": without EPT they come from memory.
        if !self.ept
            && self.pae_paging(self.cr0, self.cr4)
            && let Ok(Some(pdpte)) = self.read_pdptes(self.cr3)
        {
            self.pdpte = pdpte;
        }
        self.load_vpid(vmcs);
        self.load_rflags(vmcs.get(GUEST_RFLAGS));
        self.load_non_register(vmcs);
        self.cpl = self.segment(SegmentRegister::Ss).rights.get(vmcs12::arch::segment::AccessRights::DPL);
        self.refresh_mode();
        self.refresh_attention();
    }

    fn load_efer(&mut self, vmcs: &Vmcs) {
        if self.controls.has(LOAD_IA32_EFER_ON_ENTRY) {
            self.efer = vmcs.get(GUEST_IA32_EFER);
            return;
        }
        let long = self.controls.has(IA_32E_MODE_GUEST);
        self.efer &= !efer::LMA;
        if self.cr0 & cr::cr0::PG != 0 {
            self.efer &= !efer::LME;
        }
        if long {
            self.efer |= efer::LMA | efer::LME;
        }
    }

    fn load_vpid(&mut self, vmcs: &Vmcs) {
        self.vpid = 0;
        if self.controls.has(ENABLE_VPID) {
            self.vpid = vmcs.get(VPID);
        } else {
            self.pool.each(|key| key.vpid == 0, tlb::Context::clear);
        }
    }

    fn load_rflags(&mut self, rflags: u64) {
        self.status = crate::flags::Status::from_bits(rflags);
        self.rflags = rflags & !vmcs12::arch::rflags::STATUS | vmcs12::arch::rflags::FIXED;
    }

    fn load_non_register(&mut self, vmcs: &Vmcs) {
        let blocked = vmcs.get(GUEST_INTERRUPTIBILITY_STATE);
        let shadow = |on: bool| if on { 0 } else { u64::MAX };
        let injected = injects(vmcs);
        self.sti_shadow = shadow(blocked.get(InterruptibilityState::STI) && !injected);
        self.mov_ss_shadow = shadow(blocked.get(InterruptibilityState::MOV_SS) && !injected);
        self.nmi_blocked = blocked.get(InterruptibilityState::NMI);
        let pending = vmcs.get(GUEST_PENDING_DEBUG_EXCEPTIONS);
        self.pending_debug =
            pending.0 & (PendingDebugExceptions::B.mask() | PendingDebugExceptions::BS.mask());
        self.monitor_armed = false;
    }

    /// Instructions until the VMX-preemption timer expires.
    fn preemption_limit(&mut self) -> u64 {
        if !self.controls.has(ACTIVATE_VMX_PREEMPTION_TIMER) {
            return u64::MAX;
        }
        let rate = self.model.capabilities.misc.get(VmxMisc::PREEMPTION_TIMER_RATE);
        let ticks = u128::from(self.vmcs().get(VMX_PREEMPTION_TIMER_VALUE)) << rate;
        let multiplier = u128::from(self.time.tsc_mult_q32.max(1));
        ((ticks << 32).div_ceil(multiplier)).try_into().unwrap_or(u64::MAX)
    }

    /// Delivers the event that the VMCS injects. SDM Vol. 3, "Event Injection".
    fn inject(&mut self) -> Option<Cause> {
        let event = self.vmcs().get(INJECTED_EVENT_IDENTIFICATION);
        if !event.get(InjectedEvent::VALID) {
            return None;
        }
        let kind = event.get(InjectedEvent::KIND);
        if kind == EventKind::Other {
            // SDM Vol. 3, "Injection of Pending MTF VM Exits".
            return Some(self.monitor_trap_exit());
        }
        let software = matches!(
            kind,
            EventKind::SoftwareInterrupt
                | EventKind::PrivilegedSoftwareException
                | EventKind::SoftwareException
        );
        let length = if software { self.vmcs().get(VM_ENTRY_INSTRUCTION_LENGTH) } else { 0 };
        let error_code =
            event.get(InjectedEvent::HAS_ERROR_CODE).then(|| self.vmcs().get(INJECTED_EVENT_ERROR_CODE));
        if !(self.vmcs().get(GUEST_INTERRUPTIBILITY_STATE).get(InterruptibilityState::MOV_SS) && software) {
            self.pending_debug = 0;
        }
        let event = Delivery {
            kind,
            vector: event.get(InjectedEvent::VECTOR),
            error_code,
            return_rip: self.rip.wrapping_add(u64::from(length)) & self.ip_mask,
            instruction_length: length,
        };
        self.deliver(event).or_else(|| self.trap_after_delivery())
    }

    /// Runs from the activity state of the VMCS: an inactive processor has nothing to do until L0 acts.
    fn run_guest(&mut self) -> Cause {
        let activity = Activity::from_raw(self.vmcs().get(GUEST_ACTIVITY_STATE));
        if activity != Some(Activity::Active) && !injects(self.vmcs()) {
            // An open window ends HLT. SDM Vol. 3, "Interrupt-Window Exiting and Virtual-Interrupt Delivery".
            let window = if activity == Some(Activity::Hlt) { self.window_exit() } else { None };
            return window.unwrap_or_else(|| self.end_of_budget());
        }
        self.run()
    }
}

fn injects(vmcs: &Vmcs) -> bool {
    vmcs.get(INJECTED_EVENT_IDENTIFICATION).get(InjectedEvent::VALID)
}
