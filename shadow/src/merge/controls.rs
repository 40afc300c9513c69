//! What becomes of every control in vmcs02: one row each.

use vmcs12::control::*;
use vmcs12::field::Vmcs;

/// How vmcs01's and vmcs12's settings of a control make vmcs02's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// An intercept: 1 if L0 or L1 sets it.
    Either,
    /// A permission: 1 if L0 and L1 set it.
    Both,
    /// L0's own mechanism: as in vmcs01, whatever L1 says.
    Ours,
    /// L1's alone: as in vmcs12.
    Theirs,
    /// L0 does what L1 asked for by other means: always 1.
    On,
    /// L0 does what L1 asked for by other means: always 0.
    Off,
    /// Decided by both VMCSs: see [`emulated`].
    Emulated,
    /// Not offered to L1; 0.
    Absent,
}
use Policy::{Absent, Both, Either, Emulated, Off, On, Ours, Theirs};

/// One control's policy.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The control.
    pub control: Control,
    /// Its policy.
    pub policy: Policy,
}

const fn row(control: Control, policy: Policy) -> Row {
    Row { control, policy }
}

/// Every control, in the order of [`CONTROLS`].
#[rustfmt::skip]
pub static MERGES: [Row; CONTROLS.len()] = [
    // control                                      in vmcs02
    row(EXTERNAL_INTERRUPT_EXITING,                 Either),
    row(NMI_EXITING,                                Either),
    row(VIRTUAL_NMIS,                               Emulated), // L1's virtual NMIs, else L0's
    row(ACTIVATE_VMX_PREEMPTION_TIMER,              Theirs),   // L0 needs none: its time is the budget
    row(PROCESS_POSTED_INTERRUPTS,                  Absent),

    row(INTERRUPT_WINDOW_EXITING,                   Theirs),   // L0's own window is opened by `event`
    row(USE_TSC_OFFSETTING,                         Either),   // offsets are composed
    row(HLT_EXITING,                                Either),
    row(INVLPG_EXITING,                             Either),
    row(MWAIT_EXITING,                              Either),
    row(RDPMC_EXITING,                              Either),
    row(RDTSC_EXITING,                              Either),
    row(CR3_LOAD_EXITING,                           Either),
    row(CR3_STORE_EXITING,                          Either),
    row(ACTIVATE_TERTIARY_CONTROLS,                 Absent),
    row(CR8_LOAD_EXITING,                           Emulated), // L0 wants it unless L1 has a TPR shadow for L2
    row(CR8_STORE_EXITING,                          Emulated),
    row(USE_TPR_SHADOW,                             Emulated), // L1's, else L0's
    row(NMI_WINDOW_EXITING,                         Theirs),   // as the interrupt window
    row(MOV_DR_EXITING,                             Either),
    row(UNCONDITIONAL_IO_EXITING,                   On),       // every port is L1's to intercept or a device's
    row(USE_IO_BITMAPS,                             Off),      // L1's bitmaps are read when L2 exits
    row(MONITOR_TRAP_FLAG,                          Theirs),
    row(USE_MSR_BITMAPS,                            Both),     // without bitmaps every MSR exits
    row(MONITOR_EXITING,                            Either),
    row(PAUSE_EXITING,                              Either),
    row(ACTIVATE_SECONDARY_CONTROLS,                On),

    row(VIRTUALIZE_APIC_ACCESSES,                   Theirs),
    row(ENABLE_EPT,                                 On),
    row(DESCRIPTOR_TABLE_EXITING,                   Either),
    row(ENABLE_RDTSCP,                              Both),
    row(VIRTUALIZE_X2APIC_MODE,                     Theirs),
    row(ENABLE_VPID,                                On),
    row(WBINVD_EXITING,                             Either),
    row(UNRESTRICTED_GUEST,                         Theirs),   // without it L2 faults as L1 expects
    row(APIC_REGISTER_VIRTUALIZATION,               Theirs),
    row(VIRTUAL_INTERRUPT_DELIVERY,                 Theirs),
    row(PAUSE_LOOP_EXITING,                         Theirs),
    row(RDRAND_EXITING,                             Either),
    row(ENABLE_INVPCID,                             Both),
    row(ENABLE_VM_FUNCTIONS,                        Absent),
    row(VMCS_SHADOWING,                             Absent),   // vmcs01's is L0's mechanism for L1
    row(ENABLE_ENCLS_EXITING,                       Absent),
    row(RDSEED_EXITING,                             Either),
    row(ENABLE_PML,                                 Absent),
    row(EPT_VIOLATION_VE,                           Absent),
    row(CONCEAL_VMX_FROM_PT,                        Absent),
    row(ENABLE_XSAVES_XRSTORS,                      Both),
    row(PASID_TRANSLATION,                          Absent),
    row(MODE_BASED_EXECUTE_CONTROL_FOR_EPT,         Absent),
    row(SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT,         Absent),
    row(INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES,     Absent),
    row(USE_TSC_SCALING,                            Either),   // multipliers are composed
    row(ENABLE_USER_WAIT_AND_PAUSE,                 Both),
    row(ENABLE_PCONFIG,                             Absent),
    row(ENABLE_ENCLV_EXITING,                       Absent),
    row(VMM_BUS_LOCK_DETECTION,                     Absent),
    row(INSTRUCTION_TIMEOUT,                        Absent),

    row(LOADIWKEY_EXITING,                          Absent),
    row(ENABLE_HLAT,                                Absent),
    row(EPT_PAGING_WRITE_CONTROL,                   Absent),
    row(GUEST_PAGING_VERIFICATION,                  Absent),
    row(IPI_VIRTUALIZATION,                         Absent),
    row(SEAM_GUEST_PHYSICAL_ADDRESS_WIDTH,          Absent),
    row(ENABLE_MSR_LIST_INSTRUCTIONS,               Absent),
    row(VIRTUALIZE_IA32_SPEC_CTRL,                  Absent),
    row(APIC_TIMER_VIRTUALIZATION,                  Absent),
    row(ENABLE_PBNDKB,                              Absent),
    row(PEBS_USES_GUEST_PHYSICAL_ADDRESSES,         Absent),

    // An exit from L2 goes to L0, so the exit controls are L0's; it saves whatever L1 may ask for.
    row(SAVE_DEBUG_CONTROLS,                        On),
    row(HOST_ADDRESS_SPACE_SIZE,                    Ours),
    row(LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT,         Ours),
    row(ACKNOWLEDGE_INTERRUPT_ON_EXIT,              Ours),
    row(SAVE_IA32_PAT,                              On),
    row(LOAD_IA32_PAT_ON_EXIT,                      Ours),
    row(SAVE_IA32_EFER,                             On),
    row(LOAD_IA32_EFER_ON_EXIT,                     Ours),
    row(SAVE_VMX_PREEMPTION_TIMER_VALUE,            Emulated), // L2 goes on with what is left of L1's timer
    row(CLEAR_IA32_BNDCFGS,                         Absent),
    row(CONCEAL_VMX_FROM_PT_ON_EXIT,                Absent),
    row(CLEAR_IA32_RTIT_CTL,                        Absent),
    row(CLEAR_IA32_LBR_CTL,                         Absent),
    row(CLEAR_UINV,                                 Absent),
    row(LOAD_CET_STATE_ON_EXIT,                     Absent),
    row(LOAD_PKRS_ON_EXIT,                          Absent),
    row(SAVE_IA32_PERF_GLOBAL_CTRL,                 Absent),
    row(ACTIVATE_SECONDARY_EXIT_CONTROLS,           Absent),

    row(SAVE_FRED,                                  Absent),
    row(LOAD_FRED_ON_EXIT,                          Absent),
    row(LOAD_IA32_SPEC_CTRL_ON_EXIT,                Absent),
    row(PREMATURELY_BUSY_SHADOW_STACK,              Absent),

    // What L1's entry does not load, L2 has from L1: `guest` puts it into vmcs02, which loads it always.
    row(LOAD_DEBUG_CONTROLS,                        On),
    row(IA_32E_MODE_GUEST,                          Theirs),
    row(ENTRY_TO_SMM,                               Absent),
    row(DEACTIVATE_DUAL_MONITOR_TREATMENT,          Absent),
    row(LOAD_IA32_PERF_GLOBAL_CTRL_ON_ENTRY,        Absent),
    row(LOAD_IA32_PAT_ON_ENTRY,                     On),
    row(LOAD_IA32_EFER_ON_ENTRY,                    On),
    row(LOAD_IA32_BNDCFGS,                          Absent),
    row(CONCEAL_VMX_FROM_PT_ON_ENTRY,               Absent),
    row(LOAD_IA32_RTIT_CTL,                         Absent),
    row(LOAD_UINV,                                  Absent),
    row(LOAD_CET_STATE_ON_ENTRY,                    Absent),
    row(LOAD_GUEST_IA32_LBR_CTL,                    Absent),
    row(LOAD_PKRS_ON_ENTRY,                         Absent),
    row(LOAD_FRED_ON_ENTRY,                         Absent),
    row(LOAD_IA32_SPEC_CTRL_ON_ENTRY,               Absent),
    row(ALLOW_SEAM_GUEST_TELEMETRY,                 Absent),
];

const _: () = {
    let mut i = 0;
    while i < CONTROLS.len() {
        let (mine, table) = (MERGES[i].control, CONTROLS[i].0);
        assert!(mine.word as u8 == table.word as u8 && mine.bit == table.bit, "row i is control i");
        i += 1;
    }
};

/// The table's policies for one word, as masks: what the merge computes with.
#[derive(Clone, Copy)]
struct Masks {
    either: u64,
    both: u64,
    ours: u64,
    theirs: u64,
    on: u64,
    named: u64,
}

const fn masks(word: Word) -> Masks {
    let mut masks = Masks { either: 0, both: 0, ours: 0, theirs: 0, on: 0, named: 0 };
    let mut i = 0;
    while i < MERGES.len() {
        let Row { control, policy } = MERGES[i];
        if control.word as u8 == word as u8 {
            let bit = control.mask();
            masks.named |= bit;
            match policy {
                Either => masks.either |= bit,
                Both => masks.both |= bit,
                Ours => masks.ours |= bit,
                Theirs => masks.theirs |= bit,
                On => masks.on |= bit,
                Off | Emulated | Absent => {}
            }
        }
        i += 1;
    }
    masks
}

const MASKS: [Masks; Word::ALL.len()] = {
    let mut all = [masks(Word::PinBased); Word::ALL.len()];
    let mut i = 0;
    while i < Word::ALL.len() {
        all[i] = masks(Word::ALL[i]);
        i += 1;
    }
    all
};

/// Merges every control. Bits without a name are reserved: they are as in vmcs01, whose settings the machine allows.
pub(crate) fn merge(vmcs02: &mut Vmcs, vmcs01: &Vmcs, vmcs12: &Vmcs) {
    for (word, masks) in Word::ALL.into_iter().zip(&MASKS) {
        let (ours, theirs) = (vmcs01.controls(word), vmcs12.controls(word));
        let merged = (ours | theirs) & masks.either
            | ours & theirs & masks.both
            | ours & (masks.ours | !masks.named)
            | theirs & masks.theirs
            | masks.on
            | emulated(word, vmcs01, vmcs12);
        vmcs02.set_raw(word.field(), merged);
    }
}

/// The controls of a word whose setting depends on more than their own.
fn emulated(word: Word, vmcs01: &Vmcs, vmcs12: &Vmcs) -> u64 {
    let either = |control| vmcs01.has(control) || vmcs12.has(control);
    let bit = |control: Control, on: bool| if on { control.mask() } else { 0 };
    match word {
        Word::PinBased => {
            let whose = if vmcs12.has(NMI_EXITING) { vmcs12 } else { vmcs01 };
            bit(VIRTUAL_NMIS, whose.has(VIRTUAL_NMIS))
        }
        Word::Primary if vmcs12.has(USE_TPR_SHADOW) => {
            bit(USE_TPR_SHADOW, true)
                | bit(CR8_LOAD_EXITING, vmcs12.has(CR8_LOAD_EXITING))
                | bit(CR8_STORE_EXITING, vmcs12.has(CR8_STORE_EXITING))
        }
        Word::Primary => {
            bit(USE_TPR_SHADOW, vmcs01.has(USE_TPR_SHADOW))
                | bit(CR8_LOAD_EXITING, either(CR8_LOAD_EXITING))
                | bit(CR8_STORE_EXITING, either(CR8_STORE_EXITING))
        }
        Word::Exit => bit(SAVE_VMX_PREEMPTION_TIMER_VALUE, vmcs12.has(ACTIVATE_VMX_PREEMPTION_TIMER)),
        Word::Secondary | Word::Tertiary | Word::SecondaryExit | Word::Entry => 0,
    }
}
