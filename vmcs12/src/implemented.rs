//! Which VMX capabilities this implementation has, whatever part it plays. One row decides what is advertised.

use crate::addr::MACHINE_PHYSICAL_WIDTH;
use crate::arch::eptp::memory_type;
use crate::arch::{cr::cr0, cr::cr4};
use crate::caps::{Allowed, Capabilities, EptVpidCap, VmxBasic, VmxMisc};
use crate::control::*;
use crate::region;

/// How far a control is implemented.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// Nowhere.
    Absent,
    /// By the processor, in a VMCS that L0 made; not by the nested engine for L1.
    ForL0,
    /// By the processor and, for L1's own VMCS, by the nested engine.
    Offered,
}
use Support::{Absent, ForL0, Offered};

/// Every control, in the order of [`CONTROLS`].
#[rustfmt::skip]
pub const SUPPORT: [(Control, Support); CONTROLS.len()] = [
    // control                                  is implemented
    (EXTERNAL_INTERRUPT_EXITING,                 Offered),
    (NMI_EXITING,                                Offered),
    (VIRTUAL_NMIS,                               Offered),
    (ACTIVATE_VMX_PREEMPTION_TIMER,              Offered),
    (PROCESS_POSTED_INTERRUPTS,                  Absent),

    (INTERRUPT_WINDOW_EXITING,                   Offered),
    (USE_TSC_OFFSETTING,                         Offered),
    (HLT_EXITING,                                Offered),
    (INVLPG_EXITING,                             Offered),
    (MWAIT_EXITING,                              Offered),
    (RDPMC_EXITING,                              Offered),
    (RDTSC_EXITING,                              Offered),
    (CR3_LOAD_EXITING,                           Offered),
    (CR3_STORE_EXITING,                          Offered),
    (ACTIVATE_TERTIARY_CONTROLS,                 Absent),
    (CR8_LOAD_EXITING,                           Offered),
    (CR8_STORE_EXITING,                          Offered),
    (USE_TPR_SHADOW,                             Offered),
    (NMI_WINDOW_EXITING,                         Offered),
    (MOV_DR_EXITING,                             Offered),
    (UNCONDITIONAL_IO_EXITING,                   Offered),
    (USE_IO_BITMAPS,                             Offered),
    (MONITOR_TRAP_FLAG,                          Offered),
    (USE_MSR_BITMAPS,                            Offered),
    (MONITOR_EXITING,                            Offered),
    (PAUSE_EXITING,                              Offered),
    (ACTIVATE_SECONDARY_CONTROLS,                Offered),

    (VIRTUALIZE_APIC_ACCESSES,                   Absent),
    (ENABLE_EPT,                                 Offered),
    (DESCRIPTOR_TABLE_EXITING,                   Offered),
    (ENABLE_RDTSCP,                              Offered),
    (VIRTUALIZE_X2APIC_MODE,                     Absent),
    (ENABLE_VPID,                                Offered),
    (WBINVD_EXITING,                             Offered),
    (UNRESTRICTED_GUEST,                         Offered),
    (APIC_REGISTER_VIRTUALIZATION,               Absent),
    (VIRTUAL_INTERRUPT_DELIVERY,                 Absent),
    (PAUSE_LOOP_EXITING,                         Offered),
    (RDRAND_EXITING,                             Offered),
    (ENABLE_INVPCID,                             Offered),
    (ENABLE_VM_FUNCTIONS,                        Absent),
    (VMCS_SHADOWING,                             ForL0),
    (ENABLE_ENCLS_EXITING,                       Absent),
    (RDSEED_EXITING,                             Offered),
    (ENABLE_PML,                                 Absent),
    (EPT_VIOLATION_VE,                           Absent),
    (CONCEAL_VMX_FROM_PT,                        Absent),
    (ENABLE_XSAVES_XRSTORS,                      Absent),
    (PASID_TRANSLATION,                          Absent),
    (MODE_BASED_EXECUTE_CONTROL_FOR_EPT,         Absent),
    (SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT,         Absent),
    (INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES,     Absent),
    (USE_TSC_SCALING,                            Absent),
    (ENABLE_USER_WAIT_AND_PAUSE,                 Absent),
    (ENABLE_PCONFIG,                             Absent),
    (ENABLE_ENCLV_EXITING,                       Absent),
    (VMM_BUS_LOCK_DETECTION,                     Absent),
    (INSTRUCTION_TIMEOUT,                        Absent),

    (LOADIWKEY_EXITING,                          Absent),
    (ENABLE_HLAT,                                Absent),
    (EPT_PAGING_WRITE_CONTROL,                   Absent),
    (GUEST_PAGING_VERIFICATION,                  Absent),
    (IPI_VIRTUALIZATION,                         Absent),
    (SEAM_GUEST_PHYSICAL_ADDRESS_WIDTH,          Absent),
    (ENABLE_MSR_LIST_INSTRUCTIONS,               Absent),
    (VIRTUALIZE_IA32_SPEC_CTRL,                  Absent),
    (APIC_TIMER_VIRTUALIZATION,                  Absent),
    (ENABLE_PBNDKB,                              Absent),
    (PEBS_USES_GUEST_PHYSICAL_ADDRESSES,         Absent),

    (SAVE_DEBUG_CONTROLS,                        Offered),
    (HOST_ADDRESS_SPACE_SIZE,                    Offered),
    (LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT,         Absent),
    (ACKNOWLEDGE_INTERRUPT_ON_EXIT,              Offered),
    (SAVE_IA32_PAT,                              Offered),
    (LOAD_IA32_PAT_ON_EXIT,                      Offered),
    (SAVE_IA32_EFER,                             Offered),
    (LOAD_IA32_EFER_ON_EXIT,                     Offered),
    (SAVE_VMX_PREEMPTION_TIMER_VALUE,            Offered),
    (CLEAR_IA32_BNDCFGS,                         Absent),
    (CONCEAL_VMX_FROM_PT_ON_EXIT,                Absent),
    (CLEAR_IA32_RTIT_CTL,                        Absent),
    (CLEAR_IA32_LBR_CTL,                         Absent),
    (CLEAR_UINV,                                 Absent),
    (LOAD_CET_STATE_ON_EXIT,                     Absent),
    (LOAD_PKRS_ON_EXIT,                          Absent),
    (SAVE_IA32_PERF_GLOBAL_CTRL,                 Absent),
    (ACTIVATE_SECONDARY_EXIT_CONTROLS,           Absent),

    (SAVE_FRED,                                  Absent),
    (LOAD_FRED_ON_EXIT,                          Absent),
    (LOAD_IA32_SPEC_CTRL_ON_EXIT,                Absent),
    (PREMATURELY_BUSY_SHADOW_STACK,              Absent),

    (LOAD_DEBUG_CONTROLS,                        Offered),
    (IA_32E_MODE_GUEST,                          Offered),
    (ENTRY_TO_SMM,                               Absent),
    (DEACTIVATE_DUAL_MONITOR_TREATMENT,          Absent),
    (LOAD_IA32_PERF_GLOBAL_CTRL_ON_ENTRY,        Absent),
    (LOAD_IA32_PAT_ON_ENTRY,                     Offered),
    (LOAD_IA32_EFER_ON_ENTRY,                    Offered),
    (LOAD_IA32_BNDCFGS,                          Absent),
    (CONCEAL_VMX_FROM_PT_ON_ENTRY,               Absent),
    (LOAD_IA32_RTIT_CTL,                         Absent),
    (LOAD_UINV,                                  Absent),
    (LOAD_CET_STATE_ON_ENTRY,                    Absent),
    (LOAD_GUEST_IA32_LBR_CTL,                    Absent),
    (LOAD_PKRS_ON_ENTRY,                         Absent),
    (LOAD_FRED_ON_ENTRY,                         Absent),
    (LOAD_IA32_SPEC_CTRL_ON_ENTRY,               Absent),
    (ALLOW_SEAM_GUEST_TELEMETRY,                 Absent),
];

/// Reserved controls that must be 1: the default1 class. SDM Vol. 3, "Reserved Controls and Default Settings".
#[rustfmt::skip]
const DEFAULT1: &[(Word, u64)] = &[
    (Word::PinBased, 0x0000_0016),
    (Word::Primary,  0x0401_e172),
    (Word::Exit,     0x0003_6dff),
    (Word::Entry,    0x0000_11ff),
];

/// EPT and VPID as the processor and the nested engine do them.
#[rustfmt::skip]
fn ept_vpid() -> EptVpidCap {
    use EptVpidCap as Cap;
    [
        Cap::EXECUTE_ONLY, Cap::WALK_LENGTH_4, Cap::UC, Cap::WB, Cap::PAGE_2M, Cap::PAGE_1G, Cap::ACCESSED_DIRTY,
        Cap::INVEPT, Cap::INVEPT_SINGLE, Cap::INVEPT_ALL,
        Cap::INVVPID, Cap::INVVPID_ADDRESS, Cap::INVVPID_SINGLE, Cap::INVVPID_ALL, Cap::INVVPID_RETAIN_GLOBALS,
    ]
    .into_iter()
    .fold(Cap::default(), |cap, bit| cap.with(bit, true))
}

fn basic() -> VmxBasic {
    VmxBasic::default()
        .with(VmxBasic::REVISION, 1)
        .with(VmxBasic::REGION_SIZE, region::SIZE as u32)
        .with(VmxBasic::MEMORY_TYPE, memory_type::WB)
        .with(VmxBasic::INS_OUTS_INFORMATION, true)
        .with(VmxBasic::TRUE_CONTROLS, true)
        .with(VmxBasic::ANY_ERROR_CODE, true)
}

fn misc() -> VmxMisc {
    VmxMisc::default()
        .with(VmxMisc::PREEMPTION_TIMER_RATE, 5)
        .with(VmxMisc::STORES_LMA, true)
        .with(VmxMisc::HLT, true)
        .with(VmxMisc::SHUTDOWN, true)
        .with(VmxMisc::WAIT_FOR_SIPI, true)
        .with(VmxMisc::CR3_TARGETS, 4)
        .with(VmxMisc::VMWRITE_ANY_FIELD, true)
        .with(VmxMisc::ZERO_LENGTH_INJECTION, true)
}

/// CR4 bits that the processor implements; what is offered depends on CPUID besides.
const CR4: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::VMXE
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP
    | cr4::PKE;

/// The settings of a word, given how far its controls must be implemented.
fn allowed(word: Word, wanted: fn(Support) -> bool) -> Allowed {
    let default1 = DEFAULT1.iter().find(|row| row.0 == word).map_or(0, |row| row.1);
    let named = CONTROLS.iter().filter(|row| row.0.word == word).fold(0, |bits, row| bits | row.0.mask());
    let ones = SUPPORT
        .iter()
        .filter(|row| row.0.word == word && wanted(row.1))
        .fold(0, |bits, row| bits | row.0.mask());
    let must_be_one = default1 & !named;
    Allowed { must_be_one, may_be_one: ones | must_be_one }
}

fn capabilities(wanted: fn(Support) -> bool) -> Capabilities {
    let controls = Word::ALL.map(|word| allowed(word, wanted));
    let default1 = DEFAULT1.iter().map(|&(word, bits)| {
        let may_be_one = controls[word as usize].may_be_one;
        Allowed { must_be_one: bits & may_be_one, may_be_one }
    });
    let mut legacy = [Allowed::default(); DEFAULT1.len()];
    legacy.iter_mut().zip(default1).for_each(|(place, allowed)| *place = allowed);
    let mut caps = Capabilities {
        basic: basic(),
        misc: misc(),
        controls,
        legacy,
        cr0_fixed0: cr0::PE | cr0::NE | cr0::PG,
        cr0_fixed1: 0xffff_ffff,
        cr4_fixed0: cr4::VMXE,
        cr4_fixed1: CR4,
        ept_vpid: ept_vpid(),
        physical_width: MACHINE_PHYSICAL_WIDTH,
        linear_width: 48,
        ..Capabilities::default()
    };
    caps.tie();
    caps
}

/// What L1 can be offered at most.
pub fn implemented() -> Capabilities {
    capabilities(|support| support == Offered)
}

/// What a VMCS made by L0 may use: the processor's own capability MSRs.
pub fn processor() -> Capabilities {
    capabilities(|support| support != Absent)
}

const _: () = {
    let mut i = 0;
    while i < CONTROLS.len() {
        let (mine, table) = (SUPPORT[i].0, CONTROLS[i].0);
        assert!(mine.word as u8 == table.word as u8 && mine.bit == table.bit, "row i is control i");
        i += 1;
    }
};
