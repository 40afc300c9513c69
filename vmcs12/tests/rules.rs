//! A case spoils one thing in a valid VMCS; the walk over the tables proves that no rule lacks one.

use vmcs12::addr::Pa;
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::eptp::Eptp;
use vmcs12::arch::event::{EventKind, InjectedEvent};
use vmcs12::arch::segment::AccessRights;
use vmcs12::arch::state::{InterruptibilityState, PendingDebugExceptions};
use vmcs12::arch::{debugctl, efer, rflags};
use vmcs12::caps::{Capabilities, EPTP_SWITCHING, VmxBasic, VmxMisc};
use vmcs12::check::{self, CONTROLS as CHECKS_ON_CONTROLS, Ctx, Entrant, GUEST, HOST, Rule, Table};
use vmcs12::control::*;
use vmcs12::error::InstructionError;
use vmcs12::field::{AnyField, Vmcs, table::*};
use vmcs12::implemented;

/// A VMCS to be entered, and all that its checks depend on.
#[derive(Clone)]
struct Sample {
    vmcs: Vmcs,
    caps: Capabilities,
    entrant: Entrant,
    memory: Vec<(u64, u8)>,
}

impl Sample {
    fn check<T>(&self, with: impl FnOnce(&Ctx) -> T) -> T {
        let read = |from: u64, into: &mut [u8]| {
            for (byte, address) in into.iter_mut().zip(from..) {
                *byte = self.memory.iter().find(|cell| cell.0 == address).map_or(0, |cell| cell.1);
            }
        };
        with(&Ctx::new(&self.vmcs, &self.caps, self.entrant, read))
    }
    fn on(&mut self, control: Control) -> &mut Self {
        if let Some(activation) = control.word.activated_by() {
            self.vmcs.set_control(activation, true);
        }
        self.vmcs.set_control(control, true);
        self
    }
    fn off(&mut self, control: Control) -> &mut Self {
        self.vmcs.set_control(control, false);
        self
    }
    fn ept(&mut self) -> &mut Self {
        let eptp = Eptp(0x7000).with(Eptp::MEMORY_TYPE, 6).with(Eptp::WALK_LENGTH_MINUS_1, 3);
        self.vmcs.set(EPTP, eptp);
        self.on(ENABLE_EPT)
    }
    fn inject(&mut self, kind: EventKind, vector: u8, has_error_code: bool) -> &mut Self {
        self.vmcs.set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent::new(kind, vector, has_error_code));
        self
    }
    fn store(&mut self, at: u64, bytes: &[u8]) -> &mut Self {
        self.memory.extend((at..).zip(bytes.iter().copied()));
        self
    }
    /// A 32-bit guest without paging structures of its own: legacy paging, flat segments.
    fn legacy(&mut self) -> &mut Self {
        self.off(IA_32E_MODE_GUEST);
        self.vmcs.set(GUEST_CR4, cr4::VMXE);
        self.vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xc09b));
        self
    }
    /// A legacy guest with PAE paging.
    fn pae(&mut self) -> &mut Self {
        self.legacy();
        self.vmcs.set(GUEST_CR4, cr4::VMXE | cr4::PAE);
        self
    }
    fn unrestricted(&mut self) -> &mut Self {
        self.ept().on(UNRESTRICTED_GUEST)
    }
    fn virtual_8086(&mut self) -> &mut Self {
        self.legacy();
        self.vmcs.set(GUEST_RFLAGS, rflags::FIXED | rflags::VM);
        for (selector, base, limit, rights) in [
            (GUEST_ES_SELECTOR, GUEST_ES_BASE, GUEST_ES_LIMIT, GUEST_ES_ACCESS_RIGHTS),
            (GUEST_CS_SELECTOR, GUEST_CS_BASE, GUEST_CS_LIMIT, GUEST_CS_ACCESS_RIGHTS),
            (GUEST_SS_SELECTOR, GUEST_SS_BASE, GUEST_SS_LIMIT, GUEST_SS_ACCESS_RIGHTS),
            (GUEST_DS_SELECTOR, GUEST_DS_BASE, GUEST_DS_LIMIT, GUEST_DS_ACCESS_RIGHTS),
            (GUEST_FS_SELECTOR, GUEST_FS_BASE, GUEST_FS_LIMIT, GUEST_FS_ACCESS_RIGHTS),
            (GUEST_GS_SELECTOR, GUEST_GS_BASE, GUEST_GS_LIMIT, GUEST_GS_ACCESS_RIGHTS),
        ] {
            self.vmcs.set(selector, 0x1000);
            self.vmcs.set(base, 0x1_0000);
            self.vmcs.set(limit, 0xffff);
            self.vmcs.set(rights, AccessRights(0xf3));
        }
        self
    }
    fn blocking(&mut self, bits: u32) -> &mut Self {
        self.vmcs.set(GUEST_INTERRUPTIBILITY_STATE, InterruptibilityState(bits));
        self
    }
    fn pending(&mut self, bits: u64) -> &mut Self {
        self.vmcs.set(GUEST_PENDING_DEBUG_EXCEPTIONS, PendingDebugExceptions(bits));
        self
    }
    fn link(&mut self, to: u64) -> &mut Self {
        self.vmcs.set(VMCS_LINK_POINTER, Pa(to));
        self
    }
    fn posted(&mut self) -> &mut Self {
        self.on(USE_TPR_SHADOW).on(EXTERNAL_INTERRUPT_EXITING).on(VIRTUAL_INTERRUPT_DELIVERY);
        self.on(ACKNOWLEDGE_INTERRUPT_ON_EXIT).on(PROCESS_POSTED_INTERRUPTS)
    }
    fn host_32(&mut self) -> &mut Self {
        self.off(HOST_ADDRESS_SPACE_SIZE).legacy();
        self.entrant.long_mode = false;
        self
    }
    fn no_intel_64(&mut self) -> &mut Self {
        self.caps.basic = self.caps.basic.with(VmxBasic::ADDRESSES_32_BITS, true);
        self
    }
}

/// Bits of the interruptibility state.
const STI: u32 = 1;
const MOV_SS: u32 = 2;
/// Beyond the sample's physical-address width, page-aligned.
const TOO_HIGH: Pa = Pa(1 << 39);
const UNALIGNED: Pa = Pa(0x8008);
const NOT_CANONICAL: u64 = 1 << 47;

/// A processor on which every control is implemented, but no more freedom than the first ones had.
fn capabilities() -> Capabilities {
    let mut caps = implemented::processor();
    for &(control, _) in CONTROLS {
        caps.controls[control.word as usize].may_be_one |= control.mask();
    }
    caps.basic = caps.basic.with(VmxBasic::ANY_ERROR_CODE, false);
    caps.misc = caps.misc.with(VmxMisc::ZERO_LENGTH_INJECTION, false);
    caps.vmfunc = EPTP_SWITCHING;
    caps.physical_width = 39;
    caps
}

/// A 64-bit host and a 64-bit guest that break no rule.
#[rustfmt::skip]
fn valid() -> Sample {
    let caps = capabilities();
    let mut vmcs = Vmcs::default();
    for word in Word::ALL {
        vmcs.set_raw(word.field(), caps.allowed(word).must_be_one);
    }
    vmcs.set_control(HOST_ADDRESS_SPACE_SIZE, true);
    vmcs.set_control(IA_32E_MODE_GUEST, true);

    vmcs.set(HOST_CR0, cr0::PE | cr0::NE | cr0::PG | cr0::WP);
    vmcs.set(HOST_CR3, 0x1000);
    vmcs.set(HOST_CR4, cr4::VMXE | cr4::PAE);
    vmcs.set(HOST_CS_SELECTOR, 0x10);
    vmcs.set(HOST_SS_SELECTOR, 0x18);
    vmcs.set(HOST_TR_SELECTOR, 0x40);
    vmcs.set(HOST_RIP, 0x1000);

    vmcs.set(GUEST_CR0, cr0::PE | cr0::NE | cr0::PG | cr0::WP);
    vmcs.set(GUEST_CR3, 0x2000);
    vmcs.set(GUEST_CR4, cr4::VMXE | cr4::PAE);
    vmcs.set(GUEST_DR7, 0x400);
    vmcs.set(GUEST_CS_SELECTOR, 0x10);
    vmcs.set(GUEST_CS_LIMIT, 0xffff_ffff);
    vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa09b));
    for (selector, limit, rights) in [
        (GUEST_SS_SELECTOR, GUEST_SS_LIMIT, GUEST_SS_ACCESS_RIGHTS),
        (GUEST_DS_SELECTOR, GUEST_DS_LIMIT, GUEST_DS_ACCESS_RIGHTS),
        (GUEST_ES_SELECTOR, GUEST_ES_LIMIT, GUEST_ES_ACCESS_RIGHTS),
        (GUEST_FS_SELECTOR, GUEST_FS_LIMIT, GUEST_FS_ACCESS_RIGHTS),
        (GUEST_GS_SELECTOR, GUEST_GS_LIMIT, GUEST_GS_ACCESS_RIGHTS),
    ] {
        vmcs.set(selector, 0x18);
        vmcs.set(limit, 0xffff_ffff);
        vmcs.set(rights, AccessRights(0xc093));
    }
    vmcs.set(GUEST_LDTR_SELECTOR, 0x50);
    vmcs.set(GUEST_LDTR_LIMIT, 0x7);
    vmcs.set(GUEST_LDTR_ACCESS_RIGHTS, AccessRights(0x82));
    vmcs.set(GUEST_TR_SELECTOR, 0x40);
    vmcs.set(GUEST_TR_LIMIT, 0x67);
    vmcs.set(GUEST_TR_ACCESS_RIGHTS, AccessRights(0x8b));
    vmcs.set(GUEST_RFLAGS, rflags::FIXED | rflags::IF);
    vmcs.set(GUEST_RIP, 0x1000);
    vmcs.set(VMCS_LINK_POINTER, Pa(check::NO_LINK));
    Sample { vmcs, caps, entrant: Entrant { long_mode: true, current_vmcs: 0x5000 }, memory: Vec::new() }
}

/// How a rule is broken, and it alone in its phase up to there.
struct Case {
    breaks: &'static str,
    spoil: fn(&mut Sample),
}

const fn case(breaks: &'static str, spoil: fn(&mut Sample)) -> Case {
    Case { breaks, spoil }
}

#[rustfmt::skip]
const ON_CONTROLS: &[Case] = &[
    case("ctl.pin.reserved",       |s| s.vmcs.set(PIN_BASED_VM_EXECUTION_CONTROLS, 0)),
    case("ctl.primary.reserved",   |s| s.vmcs.set(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, 0)),
    case("ctl.secondary.reserved", |s| { s.caps.forbid(ENABLE_RDTSCP); s.on(ENABLE_RDTSCP); }),
    case("ctl.tertiary.reserved",  |s| { s.on(ENABLE_HLAT); s.caps.forbid(ENABLE_HLAT); }),
    case("ctl.cr3_target_count.max", |s| s.vmcs.set(CR3_TARGET_COUNT, 5)),
    case("ctl.io_bitmap_a.align", |s| s.on(USE_IO_BITMAPS).vmcs.set(ADDRESS_OF_IO_BITMAP_A, UNALIGNED)),
    case("ctl.io_bitmap_a.width", |s| s.on(USE_IO_BITMAPS).vmcs.set(ADDRESS_OF_IO_BITMAP_A, TOO_HIGH)),
    case("ctl.io_bitmap_b.align", |s| s.on(USE_IO_BITMAPS).vmcs.set(ADDRESS_OF_IO_BITMAP_B, UNALIGNED)),
    case("ctl.io_bitmap_b.width", |s| s.on(USE_IO_BITMAPS).vmcs.set(ADDRESS_OF_IO_BITMAP_B, TOO_HIGH)),
    case("ctl.msr_bitmap.align", |s| s.on(USE_MSR_BITMAPS).vmcs.set(ADDRESS_OF_MSR_BITMAPS, UNALIGNED)),
    case("ctl.msr_bitmap.width", |s| s.on(USE_MSR_BITMAPS).vmcs.set(ADDRESS_OF_MSR_BITMAPS, TOO_HIGH)),
    case("ctl.virtual_apic.align", |s| s.on(USE_TPR_SHADOW).vmcs.set(VIRTUAL_APIC_ADDRESS, UNALIGNED)),
    case("ctl.virtual_apic.width", |s| s.on(USE_TPR_SHADOW).vmcs.set(VIRTUAL_APIC_ADDRESS, TOO_HIGH)),
    case("ctl.tpr_threshold.reserved", |s| s.on(USE_TPR_SHADOW).vmcs.set(TPR_THRESHOLD, 0x10)),
    case("ctl.tpr_threshold.vtpr", |s| {
        s.on(USE_TPR_SHADOW).store(0x8080, &[0x2f]);
        s.vmcs.set(VIRTUAL_APIC_ADDRESS, Pa(0x8000));
        s.vmcs.set(TPR_THRESHOLD, 3);
    }),
    case("ctl.nmi.virtual_needs_exiting", |s| { s.on(VIRTUAL_NMIS); }),
    case("ctl.nmi.window_needs_virtual", |s| { s.on(NMI_WINDOW_EXITING); }),
    case("ctl.apic_access.align", |s| s.on(VIRTUALIZE_APIC_ACCESSES).vmcs.set(APIC_ACCESS_ADDRESS, UNALIGNED)),
    case("ctl.apic_access.width", |s| s.on(VIRTUALIZE_APIC_ACCESSES).vmcs.set(APIC_ACCESS_ADDRESS, TOO_HIGH)),
    case("ctl.apic.x2apic_needs_tpr_shadow", |s| { s.on(VIRTUALIZE_X2APIC_MODE); }),
    case("ctl.apic.x2apic_excludes_apic_access", |s| {
        s.on(USE_TPR_SHADOW).on(VIRTUALIZE_X2APIC_MODE).on(VIRTUALIZE_APIC_ACCESSES);
    }),
    case("ctl.apic.regvirt_needs_tpr_shadow", |s| { s.on(APIC_REGISTER_VIRTUALIZATION); }),
    case("ctl.apic.vid_needs_tpr_shadow", |s| { s.on(VIRTUAL_INTERRUPT_DELIVERY).on(EXTERNAL_INTERRUPT_EXITING); }),
    case("ctl.apic.vid_needs_extint_exiting", |s| { s.on(VIRTUAL_INTERRUPT_DELIVERY).on(USE_TPR_SHADOW); }),
    case("ctl.posted.needs_vid", |s| { s.posted().off(VIRTUAL_INTERRUPT_DELIVERY); }),
    case("ctl.posted.needs_ack_on_exit", |s| { s.posted().off(ACKNOWLEDGE_INTERRUPT_ON_EXIT); }),
    case("ctl.posted.vector", |s| s.posted().vmcs.set(POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0x100)),
    case("ctl.posted.desc.align", |s| s.posted().vmcs.set(POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, Pa(0x8020))),
    case("ctl.posted.desc.width", |s| s.posted().vmcs.set(POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, TOO_HIGH)),
    case("ctl.vpid.nonzero", |s| { s.on(ENABLE_VPID); }),
    case("ctl.eptp.memtype", |s| s.ept().vmcs.set(EPTP, Eptp(0x701c))),
    case("ctl.eptp.walk_length", |s| s.ept().vmcs.set(EPTP, Eptp(0x7026))),
    case("ctl.eptp.ad", |s| {
        s.caps.ept_vpid = s.caps.ept_vpid.with(vmcs12::caps::EptVpidCap::ACCESSED_DIRTY, false);
        s.ept().vmcs.set(EPTP, Eptp(0x705e));
    }),
    case("ctl.eptp.shadow_stack", |s| s.ept().vmcs.set(EPTP, Eptp(0x709e))),
    case("ctl.eptp.reserved", |s| s.ept().vmcs.set(EPTP, Eptp(0x711e))),
    case("ctl.eptp.width", |s| s.ept().vmcs.set(EPTP, Eptp(1 << 39 | 0x1e))),
    case("ctl.ept.needed_by_pml", |s| { s.on(ENABLE_PML); }),
    case("ctl.pml.align", |s| s.ept().on(ENABLE_PML).vmcs.set(PML_ADDRESS, UNALIGNED)),
    case("ctl.pml.width", |s| s.ept().on(ENABLE_PML).vmcs.set(PML_ADDRESS, TOO_HIGH)),
    case("ctl.ept.needed_by_unrestricted_guest", |s| { s.on(UNRESTRICTED_GUEST); }),
    case("ctl.ept.needed_by_mbec", |s| { s.on(MODE_BASED_EXECUTE_CONTROL_FOR_EPT); }),
    case("ctl.ept.needed_by_spp", |s| { s.on(SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT); }),
    case("ctl.ept.needed_by_pt_gpa", |s| { s.on(INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES); }),
    case("ctl.spptp.align", |s| s.ept().on(SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT).vmcs.set(SPPTP, UNALIGNED.0)),
    case("ctl.spptp.width", |s| s.ept().on(SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT).vmcs.set(SPPTP, TOO_HIGH.0)),
    case("ctl.vmfunc.reserved", |s| s.on(ENABLE_VM_FUNCTIONS).vmcs.set(VM_FUNCTION_CONTROLS, 2)),
    case("ctl.vmfunc.eptp_switching_needs_ept", |s| s.on(ENABLE_VM_FUNCTIONS).vmcs.set(VM_FUNCTION_CONTROLS, 1)),
    case("ctl.eptp_list.align", |s| {
        s.ept().on(ENABLE_VM_FUNCTIONS).vmcs.set(VM_FUNCTION_CONTROLS, 1);
        s.vmcs.set(EPTP_LIST_ADDRESS, UNALIGNED);
    }),
    case("ctl.eptp_list.width", |s| {
        s.ept().on(ENABLE_VM_FUNCTIONS).vmcs.set(VM_FUNCTION_CONTROLS, 1);
        s.vmcs.set(EPTP_LIST_ADDRESS, TOO_HIGH);
    }),
    case("ctl.vmread_bitmap.align", |s| s.on(VMCS_SHADOWING).vmcs.set(VMREAD_BITMAP_ADDRESS, UNALIGNED)),
    case("ctl.vmread_bitmap.width", |s| s.on(VMCS_SHADOWING).vmcs.set(VMREAD_BITMAP_ADDRESS, TOO_HIGH)),
    case("ctl.vmwrite_bitmap.align", |s| s.on(VMCS_SHADOWING).vmcs.set(VMWRITE_BITMAP_ADDRESS, UNALIGNED)),
    case("ctl.vmwrite_bitmap.width", |s| s.on(VMCS_SHADOWING).vmcs.set(VMWRITE_BITMAP_ADDRESS, TOO_HIGH)),
    case("ctl.ve_info.align", |s| s.on(EPT_VIOLATION_VE).vmcs.set(VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS, UNALIGNED)),
    case("ctl.ve_info.width", |s| s.on(EPT_VIOLATION_VE).vmcs.set(VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS, TOO_HIGH)),
    case("ctl.tsc.multiplier", |s| { s.on(USE_TSC_SCALING); }),
    case("ctl.exit.reserved", |s| s.vmcs.set(PRIMARY_VM_EXIT_CONTROLS, 0)),
    case("ctl.exit2.reserved", |s| { s.on(SAVE_FRED); s.caps.forbid(SAVE_FRED); }),
    case("ctl.exit.save_preemption_timer", |s| { s.on(SAVE_VMX_PREEMPTION_TIMER_VALUE); }),
    case("ctl.exit.msr_store.align", |s| { s.vmcs.set(VM_EXIT_MSR_STORE_COUNT, 1); s.vmcs.set(VM_EXIT_MSR_STORE_ADDRESS, UNALIGNED); }),
    case("ctl.exit.msr_store.width", |s| { s.vmcs.set(VM_EXIT_MSR_STORE_COUNT, 1); s.vmcs.set(VM_EXIT_MSR_STORE_ADDRESS, TOO_HIGH); }),
    case("ctl.exit.msr_store.last",  |s| { s.vmcs.set(VM_EXIT_MSR_STORE_COUNT, 2); s.vmcs.set(VM_EXIT_MSR_STORE_ADDRESS, Pa((1 << 39) - 16)); }),
    case("ctl.exit.msr_load.align",  |s| { s.vmcs.set(VM_EXIT_MSR_LOAD_COUNT, 1); s.vmcs.set(VM_EXIT_MSR_LOAD_ADDRESS, UNALIGNED); }),
    case("ctl.exit.msr_load.width",  |s| { s.vmcs.set(VM_EXIT_MSR_LOAD_COUNT, 1); s.vmcs.set(VM_EXIT_MSR_LOAD_ADDRESS, TOO_HIGH); }),
    case("ctl.exit.msr_load.last",   |s| { s.vmcs.set(VM_EXIT_MSR_LOAD_COUNT, 2); s.vmcs.set(VM_EXIT_MSR_LOAD_ADDRESS, Pa((1 << 39) - 16)); }),
    case("ctl.entry.reserved", |s| s.vmcs.set(VM_ENTRY_CONTROLS, 0)),
    case("ctl.inject.type_reserved", |s| { s.inject(EventKind::Reserved1, 0, false); }),
    case("ctl.inject.type_other", |s| { s.caps.forbid(MONITOR_TRAP_FLAG); s.inject(EventKind::Other, 0, false); }),
    case("ctl.inject.vector_nmi", |s| { s.inject(EventKind::Nmi, 3, false); }),
    case("ctl.inject.vector_hw_exception", |s| { s.inject(EventKind::HardwareException, 32, false); }),
    case("ctl.inject.vector_other", |s| { s.inject(EventKind::Other, 1, false); }),
    case("ctl.inject.error_code_required", |s| { s.inject(EventKind::HardwareException, 13, false); }),
    case("ctl.inject.error_code_not_hw", |s| { s.inject(EventKind::ExternalInterrupt, 33, true); }),
    case("ctl.inject.error_code_real_mode", |s| {
        s.unrestricted().inject(EventKind::HardwareException, 13, true).vmcs.set(GUEST_CR0, cr0::NE);
    }),
    case("ctl.inject.error_code_forbidden", |s| { s.inject(EventKind::HardwareException, 6, true); }),
    case("ctl.inject.nested_not_hw", |s| s.vmcs.set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent(0x8000_2021))),
    case("ctl.inject.nested_unsupported", |s| s.vmcs.set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent(0x8000_2306))),
    case("ctl.inject.reserved", |s| s.vmcs.set(INJECTED_EVENT_IDENTIFICATION, InjectedEvent(0x8000_1021))),
    case("ctl.inject.error_code_high", |s| {
        s.inject(EventKind::HardwareException, 13, true).vmcs.set(INJECTED_EVENT_ERROR_CODE, 0x1_0000);
    }),
    case("ctl.inject.length_range", |s| s.inject(EventKind::SoftwareInterrupt, 0x80, false).vmcs.set(VM_ENTRY_INSTRUCTION_LENGTH, 16)),
    case("ctl.inject.length_zero", |s| { s.inject(EventKind::SoftwareException, 3, false); }),
    case("ctl.entry.msr_load.align", |s| { s.vmcs.set(VM_ENTRY_MSR_LOAD_COUNT, 1); s.vmcs.set(VM_ENTRY_MSR_LOAD_ADDRESS, UNALIGNED); }),
    case("ctl.entry.msr_load.width", |s| { s.vmcs.set(VM_ENTRY_MSR_LOAD_COUNT, 1); s.vmcs.set(VM_ENTRY_MSR_LOAD_ADDRESS, TOO_HIGH); }),
    case("ctl.entry.msr_load.last",  |s| { s.vmcs.set(VM_ENTRY_MSR_LOAD_COUNT, 2); s.vmcs.set(VM_ENTRY_MSR_LOAD_ADDRESS, Pa((1 << 39) - 16)); }),
    case("ctl.entry.smm_outside_smm", |s| { s.on(ENTRY_TO_SMM); }),
    case("ctl.entry.deactivate_outside_smm", |s| { s.on(DEACTIVATE_DUAL_MONITOR_TREATMENT); }),
];

#[rustfmt::skip]
const ON_HOST: &[Case] = &[
    case("host.cr0.fixed", |s| s.vmcs.set(HOST_CR0, cr0::PE | cr0::PG)),
    case("host.cr4.fixed", |s| s.vmcs.set(HOST_CR4, cr4::PAE)),
    case("host.cr3.width", |s| s.vmcs.set(HOST_CR3, 1 << 63)),
    case("host.sysenter_esp.canonical", |s| s.vmcs.set(HOST_IA32_SYSENTER_ESP, NOT_CANONICAL)),
    case("host.sysenter_eip.canonical", |s| s.vmcs.set(HOST_IA32_SYSENTER_EIP, NOT_CANONICAL)),
    case("host.perf_global_ctrl.reserved", |s| s.on(LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT).vmcs.set(HOST_IA32_PERF_GLOBAL_CTRL, 1)),
    case("host.pat.type", |s| s.on(LOAD_IA32_PAT_ON_EXIT).vmcs.set(HOST_IA32_PAT, 0x0200)),
    case("host.efer.reserved", |s| s.on(LOAD_IA32_EFER_ON_EXIT).vmcs.set(HOST_IA32_EFER, efer::LMA | efer::LME | 2)),
    case("host.efer.lma", |s| s.on(LOAD_IA32_EFER_ON_EXIT).vmcs.set(HOST_IA32_EFER, efer::LME)),
    case("host.efer.lme", |s| s.on(LOAD_IA32_EFER_ON_EXIT).vmcs.set(HOST_IA32_EFER, efer::LMA)),
    case("host.pkrs.high", |s| s.on(LOAD_PKRS_ON_EXIT).vmcs.set(HOST_IA32_PKRS, 1 << 32)),
    case("host.sel.cs.rpl", |s| s.vmcs.set(HOST_CS_SELECTOR, 0x11)),
    case("host.sel.cs.ti",  |s| s.vmcs.set(HOST_CS_SELECTOR, 0x14)),
    case("host.sel.ss.rpl", |s| s.vmcs.set(HOST_SS_SELECTOR, 0x11)),
    case("host.sel.ss.ti",  |s| s.vmcs.set(HOST_SS_SELECTOR, 0x14)),
    case("host.sel.ds.rpl", |s| s.vmcs.set(HOST_DS_SELECTOR, 0x11)),
    case("host.sel.ds.ti",  |s| s.vmcs.set(HOST_DS_SELECTOR, 0x14)),
    case("host.sel.es.rpl", |s| s.vmcs.set(HOST_ES_SELECTOR, 0x11)),
    case("host.sel.es.ti",  |s| s.vmcs.set(HOST_ES_SELECTOR, 0x14)),
    case("host.sel.fs.rpl", |s| s.vmcs.set(HOST_FS_SELECTOR, 0x11)),
    case("host.sel.fs.ti",  |s| s.vmcs.set(HOST_FS_SELECTOR, 0x14)),
    case("host.sel.gs.rpl", |s| s.vmcs.set(HOST_GS_SELECTOR, 0x11)),
    case("host.sel.gs.ti",  |s| s.vmcs.set(HOST_GS_SELECTOR, 0x14)),
    case("host.sel.tr.rpl", |s| s.vmcs.set(HOST_TR_SELECTOR, 0x11)),
    case("host.sel.tr.ti",  |s| s.vmcs.set(HOST_TR_SELECTOR, 0x14)),
    case("host.sel.cs.nonzero", |s| s.vmcs.set(HOST_CS_SELECTOR, 0)),
    case("host.sel.tr.nonzero", |s| s.vmcs.set(HOST_TR_SELECTOR, 0)),
    case("host.sel.ss.nonzero", |s| s.host_32().vmcs.set(HOST_SS_SELECTOR, 0)),
    case("host.base.fs.canonical",   |s| s.vmcs.set(HOST_FS_BASE, NOT_CANONICAL)),
    case("host.base.gs.canonical",   |s| s.vmcs.set(HOST_GS_BASE, NOT_CANONICAL)),
    case("host.base.gdtr.canonical", |s| s.vmcs.set(HOST_GDTR_BASE, NOT_CANONICAL)),
    case("host.base.idtr.canonical", |s| s.vmcs.set(HOST_IDTR_BASE, NOT_CANONICAL)),
    case("host.base.tr.canonical",   |s| s.vmcs.set(HOST_TR_BASE, NOT_CANONICAL)),
    case("host.addrsize.legacy_no_ia32e_guest", |s| { s.host_32().on(IA_32E_MODE_GUEST); }),
    case("host.addrsize.legacy_no_64bit_host", |s| { s.host_32().on(HOST_ADDRESS_SPACE_SIZE); }),
    case("host.addrsize.long_needs_64bit_host", |s| s.host_32().entrant.long_mode = true),
    // From outside IA-32e mode, host.addrsize.legacy_no_ia32e_guest comes first; from inside it, long_needs_64bit_host.
    case("host.addrsize.32.no_ia32e_guest", |s| { s.host_32().on(IA_32E_MODE_GUEST); }),
    case("host.addrsize.32.no_pcide", |s| s.host_32().vmcs.set(HOST_CR4, cr4::VMXE | cr4::PCIDE)),
    case("host.addrsize.32.rip", |s| s.host_32().vmcs.set(HOST_RIP, 1 << 32)),
    case("host.addrsize.64.pae", |s| s.vmcs.set(HOST_CR4, cr4::VMXE)),
    case("host.addrsize.64.rip", |s| s.vmcs.set(HOST_RIP, NOT_CANONICAL)),
    case("host.addrsize.no_intel64", |s| { s.no_intel_64(); }),
];

#[rustfmt::skip]
const ON_GUEST: &[Case] = &[
    case("guest.cr0.fixed", |s| s.vmcs.set(GUEST_CR0, cr0::PE | cr0::PG)),
    case("guest.cr0.pg_needs_pe", |s| s.unrestricted().vmcs.set(GUEST_CR0, cr0::NE | cr0::PG)),
    case("guest.cr4.fixed", |s| s.vmcs.set(GUEST_CR4, cr4::PAE)),
    case("guest.debugctl.reserved", |s| s.on(LOAD_DEBUG_CONTROLS).vmcs.set(GUEST_IA32_DEBUGCTL, 1 << 6)),
    case("guest.dr7.high", |s| s.on(LOAD_DEBUG_CONTROLS).vmcs.set(GUEST_DR7, 1 << 32)),
    case("guest.ia32e.pg", |s| s.unrestricted().vmcs.set(GUEST_CR0, cr0::PE | cr0::NE)),
    case("guest.ia32e.pae", |s| s.vmcs.set(GUEST_CR4, cr4::VMXE)),
    case("guest.cr4.pcide_needs_ia32e", |s| s.legacy().vmcs.set(GUEST_CR4, cr4::VMXE | cr4::PCIDE)),
    case("guest.cr3.width", |s| s.vmcs.set(GUEST_CR3, 1 << 63)),
    case("guest.sysenter_esp.canonical", |s| s.vmcs.set(GUEST_IA32_SYSENTER_ESP, NOT_CANONICAL)),
    case("guest.sysenter_eip.canonical", |s| s.vmcs.set(GUEST_IA32_SYSENTER_EIP, NOT_CANONICAL)),
    case("guest.perf_global_ctrl.reserved", |s| s.on(LOAD_IA32_PERF_GLOBAL_CTRL_ON_ENTRY).vmcs.set(GUEST_IA32_PERF_GLOBAL_CTRL, 1)),
    case("guest.pat.type", |s| s.on(LOAD_IA32_PAT_ON_ENTRY).vmcs.set(GUEST_IA32_PAT, 3)),
    case("guest.efer.reserved", |s| s.on(LOAD_IA32_EFER_ON_ENTRY).vmcs.set(GUEST_IA32_EFER, efer::LMA | efer::LME | 2)),
    case("guest.efer.lma", |s| s.on(LOAD_IA32_EFER_ON_ENTRY).vmcs.set(GUEST_IA32_EFER, 0)),
    case("guest.efer.lme", |s| s.on(LOAD_IA32_EFER_ON_ENTRY).vmcs.set(GUEST_IA32_EFER, efer::LMA)),
    case("guest.bndcfgs.reserved", |s| s.on(LOAD_IA32_BNDCFGS).vmcs.set(GUEST_IA32_BNDCFGS, 4)),
    case("guest.bndcfgs.canonical", |s| s.on(LOAD_IA32_BNDCFGS).vmcs.set(GUEST_IA32_BNDCFGS, NOT_CANONICAL)),
    case("guest.pkrs.high", |s| s.on(LOAD_PKRS_ON_ENTRY).vmcs.set(GUEST_IA32_PKRS, 1 << 32)),
    case("guest.gdtr.base_canonical", |s| s.vmcs.set(GUEST_GDTR_BASE, NOT_CANONICAL)),
    case("guest.gdtr.limit_high", |s| s.vmcs.set(GUEST_GDTR_LIMIT, 0x1_0000)),
    case("guest.idtr.base_canonical", |s| s.vmcs.set(GUEST_IDTR_BASE, NOT_CANONICAL)),
    case("guest.idtr.limit_high", |s| s.vmcs.set(GUEST_IDTR_LIMIT, 0x1_0000)),
    case("guest.rip.high", |s| s.legacy().vmcs.set(GUEST_RIP, 1 << 32)),
    case("guest.rip.upper_identical", |s| s.vmcs.set(GUEST_RIP, 1 << 48)),
    case("guest.rflags.reserved_zero", |s| s.vmcs.set(GUEST_RFLAGS, rflags::FIXED | 1 << 3)),
    case("guest.rflags.bit1", |s| s.vmcs.set(GUEST_RFLAGS, 0)),
    case("guest.rflags.vm_ia32e", |s| {
        s.virtual_8086().on(IA_32E_MODE_GUEST).vmcs.set(GUEST_CR4, cr4::VMXE | cr4::PAE);
    }),
    case("guest.rflags.vm_real", |s| s.virtual_8086().unrestricted().vmcs.set(GUEST_CR0, cr0::NE)),
    case("guest.rflags.if_extint", |s| s.inject(EventKind::ExternalInterrupt, 33, false).vmcs.set(GUEST_RFLAGS, rflags::FIXED)),
    case("guest.activity.value", |s| s.vmcs.set(GUEST_ACTIVITY_STATE, 4)),
    case("guest.activity.hlt_dpl", |s| {
        s.vmcs.set(GUEST_ACTIVITY_STATE, 1);
        s.vmcs.set(GUEST_CS_SELECTOR, 0x13);
        s.vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa0fb));
        s.vmcs.set(GUEST_SS_SELECTOR, 0x1b);
        s.vmcs.set(GUEST_SS_ACCESS_RIGHTS, AccessRights(0xc0f3));
    }),
    case("guest.activity.blocking_needs_active", |s| s.blocking(STI).vmcs.set(GUEST_ACTIVITY_STATE, 2)),
    case("guest.activity.hlt_injection", |s| s.inject(EventKind::HardwareException, 6, false).vmcs.set(GUEST_ACTIVITY_STATE, 1)),
    case("guest.activity.shutdown_injection", |s| s.inject(EventKind::HardwareException, 1, false).vmcs.set(GUEST_ACTIVITY_STATE, 2)),
    case("guest.activity.sipi_injection", |s| s.inject(EventKind::Nmi, 2, false).vmcs.set(GUEST_ACTIVITY_STATE, 3)),
    case("guest.activity.smm_sipi", |s| s.on(ENTRY_TO_SMM).vmcs.set(GUEST_ACTIVITY_STATE, 3)),
    case("guest.intr.reserved", |s| { s.blocking(1 << 5); }),
    case("guest.intr.sti_and_mov_ss", |s| { s.blocking(STI | MOV_SS); }),
    case("guest.intr.sti_needs_if", |s| s.blocking(STI).vmcs.set(GUEST_RFLAGS, rflags::FIXED)),
    case("guest.intr.extint_sti", |s| { s.blocking(STI).inject(EventKind::ExternalInterrupt, 33, false); }),
    case("guest.intr.extint_mov_ss", |s| { s.blocking(MOV_SS).inject(EventKind::ExternalInterrupt, 33, false); }),
    case("guest.intr.nmi_sti", |s| { s.blocking(STI).inject(EventKind::Nmi, 2, false); }),
    case("guest.intr.nmi_mov_ss", |s| { s.blocking(MOV_SS).inject(EventKind::Nmi, 2, false); }),
    case("guest.intr.smi_outside_smm", |s| { s.blocking(1 << 2); }),
    case("guest.intr.nmi_virtual_nmi", |s| {
        s.on(NMI_EXITING).on(VIRTUAL_NMIS).blocking(1 << 3).inject(EventKind::Nmi, 2, false);
    }),
    case("guest.intr.enclave_mov_ss", |s| s.blocking(1 << 4 | MOV_SS).caps.cpuid.sgx = true),
    case("guest.intr.enclave_sgx", |s| { s.blocking(1 << 4); }),
    case("guest.pending_dbg.reserved", |s| { s.pending(1 << 13); }),
    case("guest.pending_dbg.bld", |s| { s.pending(1 << 11); }),
    case("guest.pending_dbg.bs_required", |s| s.blocking(STI).vmcs.set(GUEST_RFLAGS, rflags::FIXED | rflags::IF | rflags::TF)),
    case("guest.pending_dbg.bs_forbidden", |s| {
        s.blocking(MOV_SS).pending(1 << 14).vmcs.set(GUEST_RFLAGS, rflags::FIXED | rflags::TF);
        s.vmcs.set(GUEST_IA32_DEBUGCTL, debugctl::BTF);
    }),
    case("guest.pending_dbg.rtm_bits", |s| s.pending(1 << 16 | 1).caps.cpuid.rtm = true),
    case("guest.pending_dbg.rtm_support", |s| { s.pending(1 << 16 | 1 << 12); }),
    case("guest.pending_dbg.rtm_mov_ss", |s| s.pending(1 << 16 | 1 << 12).blocking(MOV_SS).caps.cpuid.rtm = true),
    case("guest.link.align", |s| { s.link(UNALIGNED.0); }),
    case("guest.link.width", |s| { s.link(TOO_HIGH.0); }),
    case("guest.link.revision", |s| { s.link(0x9000).store(0x9000, &[2, 0, 0, 0]); }),
    case("guest.link.shadow_bit", |s| { s.link(0x9000).store(0x9000, &[1, 0, 0, 0x80]); }),
    case("guest.link.not_current", |s| { s.link(0x5000).store(0x5000, &[1, 0, 0, 0]); }),
    case("guest.pdpte0.vmcs", |s| s.pae().ept().vmcs.set(GUEST_PDPTE0, 3)),
    case("guest.pdpte1.vmcs", |s| s.pae().ept().vmcs.set(GUEST_PDPTE1, 0x21)),
    case("guest.pdpte2.vmcs", |s| s.pae().ept().vmcs.set(GUEST_PDPTE2, 0x101)),
    case("guest.pdpte3.vmcs", |s| s.pae().ept().vmcs.set(GUEST_PDPTE3, 1 << 39 | 1)),
    case("guest.pdpte0.memory", |s| { s.pae().store(0x2000, &[3]); }),
    case("guest.pdpte1.memory", |s| { s.pae().store(0x2008, &[0x21]); }),
    case("guest.pdpte2.memory", |s| { s.pae().store(0x2010, &[0x01, 0x01]); }),
    case("guest.pdpte3.memory", |s| { s.pae().store(0x2018, &[1, 0, 0, 0, 0x80]); }),
];

/// The cases that are the same for each segment register with these fields.
macro_rules! segment {
    ($id:literal $base:ident $limit:ident $rights:ident present) => {
        [
            case(concat!("guest.seg.", $id, ".p"), |s| flip(s, $rights, AccessRights::P.mask())),
            case(concat!("guest.seg.", $id, ".ar_reserved_low"), |s| flip(s, $rights, 0x100)),
            case(concat!("guest.seg.", $id, ".ar_reserved_high"), |s| flip(s, $rights, 0x2_0000)),
            case(concat!("guest.seg.", $id, ".g_low"), |s| {
                s.vmcs.set($limit, 0x100);
                let rights = s.vmcs.get($rights).with(AccessRights::G, true);
                s.vmcs.set($rights, rights);
            }),
            case(concat!("guest.seg.", $id, ".g_high"), |s| {
                s.vmcs.set($limit, 0xffff_ffff);
                let rights = s.vmcs.get($rights).with(AccessRights::G, false);
                s.vmcs.set($rights, rights);
            }),
        ]
    };
    ($id:literal $base:ident $limit:ident $rights:ident virtual_8086) => {
        [
            case(concat!("guest.seg.", $id, ".v86_base"), |s| s.virtual_8086().vmcs.set($base, 0)),
            case(concat!("guest.seg.", $id, ".v86_limit"), |s| s.virtual_8086().vmcs.set($limit, 0xfffff)),
            case(concat!("guest.seg.", $id, ".v86_ar"), |s| {
                s.virtual_8086().vmcs.set($rights, AccessRights(0x93))
            }),
        ]
    };
    ($id:literal $selector:ident $rights:ident data) => {
        [
            case(concat!("guest.seg.", $id, ".type_accessed"), |s| s.vmcs.set($rights, AccessRights(0xc092))),
            case(concat!("guest.seg.", $id, ".type_readable"), |s| s.vmcs.set($rights, AccessRights(0xc099))),
            case(concat!("guest.seg.", $id, ".s"), |s| s.vmcs.set($rights, AccessRights(0xc083))),
            case(concat!("guest.seg.", $id, ".dpl"), |s| s.vmcs.set($selector, 0x1b)),
        ]
    };
}

#[rustfmt::skip]
const ON_SEGMENTS: &[&[Case]] = &[
    &segment!("es" GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_ACCESS_RIGHTS present),
    &segment!("cs" GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_ACCESS_RIGHTS present),
    &segment!("ss" GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_ACCESS_RIGHTS present),
    &segment!("ds" GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_ACCESS_RIGHTS present),
    &segment!("fs" GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_ACCESS_RIGHTS present),
    &segment!("gs" GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_ACCESS_RIGHTS present),
    &segment!("ldtr" GUEST_LDTR_BASE GUEST_LDTR_LIMIT GUEST_LDTR_ACCESS_RIGHTS present),
    &segment!("tr" GUEST_TR_BASE GUEST_TR_LIMIT GUEST_TR_ACCESS_RIGHTS present),
    &segment!("es" GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_ACCESS_RIGHTS virtual_8086),
    &segment!("cs" GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_ACCESS_RIGHTS virtual_8086),
    &segment!("ss" GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_ACCESS_RIGHTS virtual_8086),
    &segment!("ds" GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_ACCESS_RIGHTS virtual_8086),
    &segment!("fs" GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_ACCESS_RIGHTS virtual_8086),
    &segment!("gs" GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_ACCESS_RIGHTS virtual_8086),
    &segment!("es" GUEST_ES_SELECTOR GUEST_ES_ACCESS_RIGHTS data),
    &segment!("ds" GUEST_DS_SELECTOR GUEST_DS_ACCESS_RIGHTS data),
    &segment!("fs" GUEST_FS_SELECTOR GUEST_FS_ACCESS_RIGHTS data),
    &segment!("gs" GUEST_GS_SELECTOR GUEST_GS_ACCESS_RIGHTS data),
    &[
        case("guest.seg.tr.sel_ti",   |s| s.vmcs.set(GUEST_TR_SELECTOR, 0x44)),
        case("guest.seg.ldtr.sel_ti", |s| s.vmcs.set(GUEST_LDTR_SELECTOR, 0x54)),
        case("guest.seg.ss.sel_rpl",  |s| s.vmcs.set(GUEST_SS_SELECTOR, 0x19)),
        case("guest.seg.tr.base_canonical",   |s| s.vmcs.set(GUEST_TR_BASE, NOT_CANONICAL)),
        case("guest.seg.fs.base_canonical",   |s| s.vmcs.set(GUEST_FS_BASE, NOT_CANONICAL)),
        case("guest.seg.gs.base_canonical",   |s| s.vmcs.set(GUEST_GS_BASE, NOT_CANONICAL)),
        case("guest.seg.ldtr.base_canonical", |s| s.vmcs.set(GUEST_LDTR_BASE, NOT_CANONICAL)),
        case("guest.seg.cs.base_high", |s| s.vmcs.set(GUEST_CS_BASE, 1 << 32)),
        case("guest.seg.ss.base_high", |s| s.vmcs.set(GUEST_SS_BASE, 1 << 32)),
        case("guest.seg.ds.base_high", |s| s.vmcs.set(GUEST_DS_BASE, 1 << 32)),
        case("guest.seg.es.base_high", |s| s.vmcs.set(GUEST_ES_BASE, 1 << 32)),
        case("guest.seg.cs.type", |s| s.vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa093))),
        case("guest.seg.cs.type_unrestricted", |s| s.unrestricted().vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa091))),
        case("guest.seg.cs.s", |s| s.vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa08b))),
        case("guest.seg.cs.dpl_data", |s| s.unrestricted().vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa0b3))),
        case("guest.seg.cs.dpl_nonconforming", |s| s.vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa0fb))),
        case("guest.seg.cs.dpl_conforming", |s| s.vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa0ff))),
        case("guest.seg.ss.dpl_rpl", |s| {
            s.vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa0fb));
            s.vmcs.set(GUEST_SS_ACCESS_RIGHTS, AccessRights(0xc0f3));
        }),
        case("guest.seg.ss.dpl_real", |s| {
            s.unrestricted().vmcs.set(GUEST_CS_ACCESS_RIGHTS, AccessRights(0xa093));
            s.vmcs.set(GUEST_SS_ACCESS_RIGHTS, AccessRights(0xc0f3));
        }),
        case("guest.seg.cs.db_l", |s| flip(s, GUEST_CS_ACCESS_RIGHTS, AccessRights::DB.mask())),
        case("guest.seg.ss.type", |s| s.vmcs.set(GUEST_SS_ACCESS_RIGHTS, AccessRights(0xc091))),
        case("guest.seg.ss.s", |s| s.vmcs.set(GUEST_SS_ACCESS_RIGHTS, AccessRights(0xc083))),
        case("guest.seg.tr.type_legacy", |s| s.legacy().vmcs.set(GUEST_TR_ACCESS_RIGHTS, AccessRights(0x89))),
        case("guest.seg.tr.type_ia32e", |s| s.vmcs.set(GUEST_TR_ACCESS_RIGHTS, AccessRights(0x83))),
        case("guest.seg.tr.s", |s| s.vmcs.set(GUEST_TR_ACCESS_RIGHTS, AccessRights(0x9b))),
        case("guest.seg.tr.usable", |s| flip(s, GUEST_TR_ACCESS_RIGHTS, AccessRights::UNUSABLE.mask())),
        case("guest.seg.ldtr.type", |s| s.vmcs.set(GUEST_LDTR_ACCESS_RIGHTS, AccessRights(0x83))),
        case("guest.seg.ldtr.s", |s| s.vmcs.set(GUEST_LDTR_ACCESS_RIGHTS, AccessRights(0x92))),
    ],
];

fn flip(s: &mut Sample, rights: vmcs12::field::Field<AccessRights>, bits: u64) {
    let value = s.vmcs.get(rights).0 ^ bits as u32;
    s.vmcs.set(rights, AccessRights(value));
}

/// Rules that no VMCS can break first, because another one of the same phase covers it.
const COVERED: &[&str] = &["host.addrsize.32.no_ia32e_guest"];

fn cases() -> impl Iterator<Item = &'static Case> {
    ON_CONTROLS.iter().chain(ON_HOST).chain(ON_GUEST).chain(ON_SEGMENTS.iter().copied().flatten())
}

fn rules(tables: &[Table]) -> Vec<&'static Rule> {
    tables.iter().flat_map(|table| table.groups).flat_map(|group| group.rules).collect()
}

fn spoilt(case: &Case) -> Sample {
    let mut sample = valid();
    (case.spoil)(&mut sample);
    sample
}

#[test]
fn the_sample_breaks_no_rule() {
    let sample = valid();
    sample.check(|ctx| {
        check::controls_and_host(ctx).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        check::guest(ctx).unwrap_or_else(|failure| panic!("{failure:?}"));
    });
    let mut variant = valid();
    variant.virtual_8086();
    variant.check(|ctx| check::guest(ctx).unwrap_or_else(|failure| panic!("{failure:?}")));
    let mut variant = valid();
    variant.pae().ept();
    variant.check(|ctx| check::guest(ctx).unwrap_or_else(|failure| panic!("{failure:?}")));
}

#[test]
fn every_rule_has_a_case_that_it_alone_decides() {
    for phase in [CHECKS_ON_CONTROLS, HOST, GUEST] {
        for rule in rules(phase) {
            let case = cases().find(|case| case.breaks == rule.id);
            let case = case.unwrap_or_else(|| panic!("no case breaks {}", rule.id));
            spoilt(case).check(|ctx| {
                let broken: Vec<_> = check::all_broken(phase, ctx).map(|(_, rule)| rule.id).collect();
                let first = check::first_broken(phase, ctx).map(|(_, rule)| rule.id);
                assert_eq!(first, broken.first().copied(), "the table as code and as data agree");
                assert!(broken.contains(&rule.id), "{} is not broken, but {broken:?}", rule.id);
                if !COVERED.contains(&rule.id) {
                    assert_eq!(first, Some(rule.id));
                }
            });
        }
    }
}

#[test]
fn every_case_is_a_rules() {
    let all: Vec<_> = [CHECKS_ON_CONTROLS, HOST, GUEST].into_iter().flat_map(rules).collect();
    for case in cases() {
        assert!(all.iter().any(|rule| rule.id == case.breaks), "no rule {}", case.breaks);
    }
}

#[test]
fn ids_are_unique_and_sentences_say_something() {
    let mut ids: Vec<_> = [CHECKS_ON_CONTROLS, HOST, GUEST].into_iter().flat_map(rules).collect();
    for rule in &ids {
        assert!(!rule.fields.is_empty() && rule.sentence.len() > 10, "{}", rule.id);
    }
    let count = ids.len();
    ids.sort_by_key(|rule| rule.id);
    ids.dedup_by_key(|rule| rule.id);
    assert_eq!(ids.len(), count);
    assert!(count > 250, "{count} rules");
}

#[test]
fn failures_say_which() {
    let refusal = spoilt(&case("", |s| s.vmcs.set(HOST_CS_SELECTOR, 0))).check(check::controls_and_host);
    assert_eq!(refusal.map_err(|refusal| refusal.error), Err(InstructionError::EntryInvalidHostState));
    let refusal = spoilt(&case("", |s| s.vmcs.set(CR3_TARGET_COUNT, 9))).check(check::controls_and_host);
    assert_eq!(refusal.map_err(|refusal| refusal.error), Err(InstructionError::EntryInvalidControls));
}

#[test]
fn exit_qualifications_are_the_manuals() {
    let qualification = |breaks| {
        let case = cases().find(|case| case.breaks == breaks).expect("a case");
        spoilt(case).check(check::guest).expect_err(breaks).qualification
    };
    assert_eq!(qualification("guest.cr0.fixed"), 0);
    assert_eq!(qualification("guest.pdpte2.vmcs"), 2);
    assert_eq!(qualification("guest.intr.nmi_sti"), 3);
    assert_eq!(qualification("guest.intr.nmi_mov_ss"), 0);
    assert_eq!(qualification("guest.link.revision"), 4);
}

/// Random numbers that are the same in each run: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn code_and_data_agree_on_any_vmcs() {
    let mut random = Random(0x7e57_0d0e);
    for _ in 0..5_000 {
        let mut sample = valid();
        for _ in 0..random.below(8) {
            let field = AnyField::at(random.below(COUNT));
            let old = sample.vmcs.raw(field);
            let new = if random.below(2) == 0 { old ^ 1 << random.below(64) } else { random.next() };
            sample.vmcs.set_raw(field, new);
        }
        sample.check(|ctx| {
            for phase in [CHECKS_ON_CONTROLS, HOST, GUEST] {
                let as_code = check::first_broken(phase, ctx).map(|(_, rule)| rule.id);
                let as_data = check::all_broken(phase, ctx).next().map(|(_, rule)| rule.id);
                assert_eq!(as_code, as_data);
            }
        });
    }
}
