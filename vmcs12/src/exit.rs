//! VM exits: basic exit reasons and what `enter` returns. SDM Vol. 3, "Basic VM-Exit Information"; Appendix "VMX Basic Exit Reasons".

pub mod by_reason;
pub mod instruction_info;
pub mod qualification;

macro_rules! reasons {
    ($($number:literal $name:ident;)*) => {
        /// Basic exit reason.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u16)]
        #[allow(missing_docs, reason = "the manual's own names")]
        pub enum Reason { $($name = $number),* }

        impl Reason {
            /// Every reason, in the order of the numbers; the index is not the number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();
            /// The reason with this number, if it is assigned.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
            /// The reason's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

#[rustfmt::skip]
reasons! {
    0   ExceptionOrNmi;
    1   ExternalInterrupt;
    2   TripleFault;
    3   InitSignal;
    4   StartupIpi;
    5   IoSmi;
    6   OtherSmi;
    7   InterruptWindow;
    8   NmiWindow;
    9   TaskSwitch;
    10  Cpuid;
    11  Getsec;
    12  Hlt;
    13  Invd;
    14  Invlpg;
    15  Rdpmc;
    16  Rdtsc;
    17  Rsm;
    18  Vmcall;
    19  Vmclear;
    20  Vmlaunch;
    21  Vmptrld;
    22  Vmptrst;
    23  Vmread;
    24  Vmresume;
    25  Vmwrite;
    26  Vmxoff;
    27  Vmxon;
    28  ControlRegisterAccess;
    29  MovDr;
    30  IoInstruction;
    31  Rdmsr;
    32  Wrmsr;
    33  EntryFailureGuestState;
    34  EntryFailureMsrLoading;
    36  Mwait;
    37  MonitorTrapFlag;
    39  Monitor;
    40  Pause;
    41  EntryFailureMachineCheck;
    43  TprBelowThreshold;
    44  ApicAccess;
    45  VirtualizedEoi;
    46  GdtrIdtrAccess;
    47  LdtrTrAccess;
    48  EptViolation;
    49  EptMisconfiguration;
    50  Invept;
    51  Rdtscp;
    52  VmxPreemptionTimerExpired;
    53  Invvpid;
    54  WbinvdOrWbnoinvd;
    55  Xsetbv;
    56  ApicWrite;
    57  Rdrand;
    58  Invpcid;
    59  Vmfunc;
    60  Encls;
    61  Rdseed;
    62  PageModificationLogFull;
    63  Xsaves;
    64  Xrstors;
    65  Pconfig;
    66  SppRelatedEvent;
    67  Umwait;
    68  Tpause;
    69  Loadiwkey;
    70  Enclv;
    72  EnqcmdPasidTranslation;
    73  EnqcmdsPasidTranslation;
    74  BusLock;
    75  InstructionTimeout;
    76  Seamcall;
    77  Tdcall;
    78  Rdmsrlist;
    79  Wrmsrlist;
    80  Urdmsr;
    81  Uwrmsr;
    84  RdmsrImmediate;
    85  WrmsrnsImmediate;
}

/// The exit-reason field, bit 31: VM-entry failure.
pub const ENTRY_FAILURE: u32 = 1 << 31;

/// What ended [`enter`](Budget): a VM exit, or the end of the budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Why the processor stopped.
    pub cause: Cause,
    /// Instructions retired since the entry.
    pub retired: u64,
}

/// Why `enter` returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A VM exit; the VMCS holds the exit information.
    Vm(Reason),
    /// VM entry failed after the checks on controls: the reason, and the broken rule's id; guest state is unchanged.
    EntryFailure(Reason, &'static str),
    /// The VMCS failed the checks on controls or host state: VM-instruction error 7 or 8 and the rule's id.
    Refused(u32, &'static str),
    /// The budget is used up or a kick arrived: the soft processor's only "host interrupt". Guest state is in the VMCS.
    Budget,
}

/// Instructions until `enter` must return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget(pub u64);

/// What to drop from the cached translations. SDM Vol. 3, "Operations that Invalidate Cached Mappings".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// INVEPT single-context: guest-physical and combined mappings of this EPTP's root.
    Ept(crate::addr::Pa),
    /// INVEPT all-context.
    EptAll,
    /// INVVPID individual-address.
    VpidAddress(u16, crate::addr::Gva),
    /// INVVPID single-context.
    Vpid(u16),
    /// INVVPID single-context-retaining-globals.
    VpidRetainGlobals(u16),
    /// INVVPID all-context: every VPID but 0.
    VpidAll,
}
