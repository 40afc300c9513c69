//! Every VM-execution, VM-exit and VM-entry control: one word, one bit, one name.
//! SDM Vol. 3, "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control Fields".

use crate::field::AnyField;
use crate::field::table;

/// A field of control bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// Pin-based VM-execution controls.
    PinBased,
    /// Primary processor-based VM-execution controls.
    Primary,
    /// Secondary processor-based VM-execution controls.
    Secondary,
    /// Tertiary processor-based VM-execution controls.
    Tertiary,
    /// Primary VM-exit controls.
    Exit,
    /// Secondary VM-exit controls.
    SecondaryExit,
    /// VM-entry controls.
    Entry,
}

impl Word {
    /// All words, in the manual's order.
    pub const ALL: [Self; 7] = [
        Self::PinBased,
        Self::Primary,
        Self::Secondary,
        Self::Tertiary,
        Self::Exit,
        Self::SecondaryExit,
        Self::Entry,
    ];

    /// The VMCS field that holds the word.
    #[inline(always)]
    pub const fn field(self) -> AnyField {
        match self {
            Self::PinBased => table::PIN_BASED_VM_EXECUTION_CONTROLS.any(),
            Self::Primary => table::PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
            Self::Secondary => table::SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
            Self::Tertiary => table::TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),
            Self::Exit => table::PRIMARY_VM_EXIT_CONTROLS.any(),
            Self::SecondaryExit => table::SECONDARY_VM_EXIT_CONTROLS.any(),
            Self::Entry => table::VM_ENTRY_CONTROLS.any(),
        }
    }

    /// The control without which every bit of this word counts as 0.
    #[inline(always)]
    pub const fn activated_by(self) -> Option<Control> {
        match self {
            Self::Secondary => Some(ACTIVATE_SECONDARY_CONTROLS),
            Self::Tertiary => Some(ACTIVATE_TERTIARY_CONTROLS),
            Self::SecondaryExit => Some(ACTIVATE_SECONDARY_EXIT_CONTROLS),
            Self::PinBased | Self::Primary | Self::Exit | Self::Entry => None,
        }
    }
}

/// One control bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Control {
    /// The word that it is in.
    pub word: Word,
    /// Its bit.
    pub bit: u8,
}

impl Control {
    /// The control's bit, in place.
    #[inline(always)]
    pub const fn mask(self) -> u64 {
        1 << self.bit
    }
    /// Its place in [`CONTROLS`].
    pub fn index(self) -> usize {
        CONTROLS
            .iter()
            .position(|(control, _)| *control == self)
            .expect("every Control constant is a row of CONTROLS")
    }
    /// The manual's name, as the constant is called.
    pub fn name(self) -> &'static str {
        CONTROLS[self.index()].1
    }
}

macro_rules! controls {
    ($($word:ident $bit:literal $name:ident;)*) => {
        $(#[doc = concat!("Bit ", $bit, " of the ", stringify!($word), " controls.")]
        pub const $name: Control = Control { word: Word::$word, bit: $bit };)*
        /// Every control with its name, in the manual's order.
        pub const CONTROLS: &[(Control, &str)] = &[$(($name, stringify!($name))),*];
    };
}

#[rustfmt::skip]
controls! {
    // word        bit  control
    PinBased       0  EXTERNAL_INTERRUPT_EXITING;
    PinBased       3  NMI_EXITING;
    PinBased       5  VIRTUAL_NMIS;
    PinBased       6  ACTIVATE_VMX_PREEMPTION_TIMER;
    PinBased       7  PROCESS_POSTED_INTERRUPTS;

    Primary        2  INTERRUPT_WINDOW_EXITING;
    Primary        3  USE_TSC_OFFSETTING;
    Primary        7  HLT_EXITING;
    Primary        9  INVLPG_EXITING;
    Primary       10  MWAIT_EXITING;
    Primary       11  RDPMC_EXITING;
    Primary       12  RDTSC_EXITING;
    Primary       15  CR3_LOAD_EXITING;
    Primary       16  CR3_STORE_EXITING;
    Primary       17  ACTIVATE_TERTIARY_CONTROLS;
    Primary       19  CR8_LOAD_EXITING;
    Primary       20  CR8_STORE_EXITING;
    Primary       21  USE_TPR_SHADOW;
    Primary       22  NMI_WINDOW_EXITING;
    Primary       23  MOV_DR_EXITING;
    Primary       24  UNCONDITIONAL_IO_EXITING;
    Primary       25  USE_IO_BITMAPS;
    Primary       27  MONITOR_TRAP_FLAG;
    Primary       28  USE_MSR_BITMAPS;
    Primary       29  MONITOR_EXITING;
    Primary       30  PAUSE_EXITING;
    Primary       31  ACTIVATE_SECONDARY_CONTROLS;

    Secondary      0  VIRTUALIZE_APIC_ACCESSES;
    Secondary      1  ENABLE_EPT;
    Secondary      2  DESCRIPTOR_TABLE_EXITING;
    Secondary      3  ENABLE_RDTSCP;
    Secondary      4  VIRTUALIZE_X2APIC_MODE;
    Secondary      5  ENABLE_VPID;
    Secondary      6  WBINVD_EXITING;
    Secondary      7  UNRESTRICTED_GUEST;
    Secondary      8  APIC_REGISTER_VIRTUALIZATION;
    Secondary      9  VIRTUAL_INTERRUPT_DELIVERY;
    Secondary     10  PAUSE_LOOP_EXITING;
    Secondary     11  RDRAND_EXITING;
    Secondary     12  ENABLE_INVPCID;
    Secondary     13  ENABLE_VM_FUNCTIONS;
    Secondary     14  VMCS_SHADOWING;
    Secondary     15  ENABLE_ENCLS_EXITING;
    Secondary     16  RDSEED_EXITING;
    Secondary     17  ENABLE_PML;
    Secondary     18  EPT_VIOLATION_VE;
    Secondary     19  CONCEAL_VMX_FROM_PT;
    Secondary     20  ENABLE_XSAVES_XRSTORS;
    Secondary     21  PASID_TRANSLATION;
    Secondary     22  MODE_BASED_EXECUTE_CONTROL_FOR_EPT;
    Secondary     23  SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT;
    Secondary     24  INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES;
    Secondary     25  USE_TSC_SCALING;
    Secondary     26  ENABLE_USER_WAIT_AND_PAUSE;
    Secondary     27  ENABLE_PCONFIG;
    Secondary     28  ENABLE_ENCLV_EXITING;
    Secondary     30  VMM_BUS_LOCK_DETECTION;
    Secondary     31  INSTRUCTION_TIMEOUT;

    Tertiary       0  LOADIWKEY_EXITING;
    Tertiary       1  ENABLE_HLAT;
    Tertiary       2  EPT_PAGING_WRITE_CONTROL;
    Tertiary       3  GUEST_PAGING_VERIFICATION;
    Tertiary       4  IPI_VIRTUALIZATION;
    Tertiary       5  SEAM_GUEST_PHYSICAL_ADDRESS_WIDTH;
    Tertiary       6  ENABLE_MSR_LIST_INSTRUCTIONS;
    Tertiary       7  VIRTUALIZE_IA32_SPEC_CTRL;
    Tertiary       8  APIC_TIMER_VIRTUALIZATION;
    Tertiary       9  ENABLE_PBNDKB;
    Tertiary      12  PEBS_USES_GUEST_PHYSICAL_ADDRESSES;

    Exit           2  SAVE_DEBUG_CONTROLS;
    Exit           9  HOST_ADDRESS_SPACE_SIZE;
    Exit          12  LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT;
    Exit          15  ACKNOWLEDGE_INTERRUPT_ON_EXIT;
    Exit          18  SAVE_IA32_PAT;
    Exit          19  LOAD_IA32_PAT_ON_EXIT;
    Exit          20  SAVE_IA32_EFER;
    Exit          21  LOAD_IA32_EFER_ON_EXIT;
    Exit          22  SAVE_VMX_PREEMPTION_TIMER_VALUE;
    Exit          23  CLEAR_IA32_BNDCFGS;
    Exit          24  CONCEAL_VMX_FROM_PT_ON_EXIT;
    Exit          25  CLEAR_IA32_RTIT_CTL;
    Exit          26  CLEAR_IA32_LBR_CTL;
    Exit          27  CLEAR_UINV;
    Exit          28  LOAD_CET_STATE_ON_EXIT;
    Exit          29  LOAD_PKRS_ON_EXIT;
    Exit          30  SAVE_IA32_PERF_GLOBAL_CTRL;
    Exit          31  ACTIVATE_SECONDARY_EXIT_CONTROLS;

    SecondaryExit  0  SAVE_FRED;
    SecondaryExit  1  LOAD_FRED_ON_EXIT;
    SecondaryExit  2  LOAD_IA32_SPEC_CTRL_ON_EXIT;
    SecondaryExit  3  PREMATURELY_BUSY_SHADOW_STACK;

    Entry          2  LOAD_DEBUG_CONTROLS;
    Entry          9  IA_32E_MODE_GUEST;
    Entry         10  ENTRY_TO_SMM;
    Entry         11  DEACTIVATE_DUAL_MONITOR_TREATMENT;
    Entry         13  LOAD_IA32_PERF_GLOBAL_CTRL_ON_ENTRY;
    Entry         14  LOAD_IA32_PAT_ON_ENTRY;
    Entry         15  LOAD_IA32_EFER_ON_ENTRY;
    Entry         16  LOAD_IA32_BNDCFGS;
    Entry         17  CONCEAL_VMX_FROM_PT_ON_ENTRY;
    Entry         18  LOAD_IA32_RTIT_CTL;
    Entry         19  LOAD_UINV;
    Entry         20  LOAD_CET_STATE_ON_ENTRY;
    Entry         21  LOAD_GUEST_IA32_LBR_CTL;
    Entry         22  LOAD_PKRS_ON_ENTRY;
    Entry         23  LOAD_FRED_ON_ENTRY;
    Entry         24  LOAD_IA32_SPEC_CTRL_ON_ENTRY;
    Entry         25  ALLOW_SEAM_GUEST_TELEMETRY;
}
