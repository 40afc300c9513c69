//! VM-instruction errors. SDM Vol. 3, "VM Instruction Error Numbers".

macro_rules! instruction_errors {
    ($($number:literal $name:ident $text:literal;)*) => {
        /// The value of the VM-instruction error field.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum InstructionError {
            $(#[doc = $text] $name = $number),*
        }

        impl InstructionError {
            /// Every error, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The error with this number, if it is assigned.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
            /// The number.
            pub const fn number(self) -> u32 {
                self as u32
            }
            /// What the manual says of it.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

#[rustfmt::skip]
instruction_errors! {
    1  VmcallInRoot                "VMCALL executed in VMX root operation";
    2  VmclearInvalidAddress       "VMCLEAR with invalid physical address";
    3  VmclearVmxonPointer         "VMCLEAR with VMXON pointer";
    4  VmlaunchNonClear            "VMLAUNCH with non-clear VMCS";
    5  VmresumeNonLaunched         "VMRESUME with non-launched VMCS";
    6  VmresumeAfterVmxoff         "VMRESUME after VMXOFF";
    7  EntryInvalidControls        "VM entry with invalid control field(s)";
    8  EntryInvalidHostState       "VM entry with invalid host-state field(s)";
    9  VmptrldInvalidAddress       "VMPTRLD with invalid physical address";
    10 VmptrldVmxonPointer         "VMPTRLD with VMXON pointer";
    11 VmptrldWrongRevision        "VMPTRLD with incorrect VMCS revision identifier";
    12 UnsupportedField            "VMREAD/VMWRITE from/to unsupported VMCS component";
    13 ReadOnlyField               "VMWRITE to read-only VMCS component";
    15 VmxonInRoot                 "VMXON executed in VMX root operation";
    16 EntryInvalidExecutive       "VM entry with invalid executive-VMCS pointer";
    17 EntryNonLaunchedExecutive   "VM entry with non-launched executive VMCS";
    18 EntryExecutiveNotVmxon      "VM entry with executive-VMCS pointer not VMXON pointer";
    19 VmcallNonClear              "VMCALL with non-clear VMCS";
    20 VmcallInvalidExitControls   "VMCALL with invalid VM-exit control fields";
    22 VmcallWrongMsegRevision     "VMCALL with incorrect MSEG revision identifier";
    23 VmxoffDualMonitor           "VMXOFF under dual-monitor treatment of SMIs and SMM";
    24 VmcallInvalidMonitorFeatures "VMCALL with invalid SMM-monitor features";
    25 EntryInvalidExecutiveControls "VM entry with invalid VM-execution control fields in executive VMCS";
    26 EntryBlockedByMovSs         "VM entry with events blocked by MOV SS";
    28 InvalidInvalidationOperand  "invalid operand to INVEPT/INVVPID";
}

/// The VMX-abort indicator. SDM Vol. 3, "VMX Aborts".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Abort {
    /// An MSR of the VM-exit MSR-store list could not be saved.
    SaveGuestMsrs = 1,
    /// A PDPTE of the host's PAE paging is not valid.
    HostPdpte = 2,
    /// The current VMCS is corrupted so that the exit cannot complete.
    CorruptVmcs = 3,
    /// An MSR of the VM-exit MSR-load list could not be loaded.
    LoadHostMsrs = 4,
    /// A machine check came during the exit.
    MachineCheck = 5,
    /// The host is to be in IA-32e mode or not, contrary to the guest's mode.
    HostAddressSpace = 6,
}
