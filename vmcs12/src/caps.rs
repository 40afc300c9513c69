//! What a processor may do in VMX operation. SDM Vol. 3, Appendix "VMX Capability Reporting Facility".

use crate::arch::msr::*;
use crate::arch::{debugctl, efer};
use crate::bits;
use crate::control::*;
use crate::field::table::{self, FIELDS};
use crate::field::{AnyField, Row, Width};

bits! {
    /// IA32_VMX_BASIC. SDM Vol. 3, "Basic VMX Information".
    pub struct VmxBasic: u64 {
        REVISION             30:0  u32;
        REGION_SIZE          44:32 u32;
        ADDRESSES_32_BITS    48    bool;
        DUAL_MONITOR         49    bool;
        MEMORY_TYPE          53:50 u8;
        INS_OUTS_INFORMATION 54    bool;
        TRUE_CONTROLS        55    bool;
        /// Hardware exceptions may be injected with or without error code, whatever the vector.
        ANY_ERROR_CODE       56    bool;
        NESTED_EXCEPTION     58    bool;
    }
}

bits! {
    /// IA32_VMX_MISC. SDM Vol. 3, "Miscellaneous Data".
    pub struct VmxMisc: u64 {
        PREEMPTION_TIMER_RATE   4:0  u8;
        /// VM exits store IA32_EFER.LMA into the control "IA-32e mode guest".
        STORES_LMA              5    bool;
        HLT                     6    bool;
        SHUTDOWN                7    bool;
        WAIT_FOR_SIPI           8    bool;
        PT_IN_VMX              14    bool;
        RDMSR_SMBASE           15    bool;
        CR3_TARGETS         24:16    u32;
        MSR_LIST_SIZE       27:25    u8;
        SMM_MONITOR_CTL_2      28    bool;
        /// VMWRITE may write every field, exit information included.
        VMWRITE_ANY_FIELD      29    bool;
        /// Software events may be injected with instruction length 0.
        ZERO_LENGTH_INJECTION  30    bool;
        MSEG_REVISION       63:32    u32;
    }
}

bits! {
    /// IA32_VMX_EPT_VPID_CAP. SDM Vol. 3, "VPID and EPT Capabilities".
    pub struct EptVpidCap: u64 {
        EXECUTE_ONLY             0 bool;
        WALK_LENGTH_4            6 bool;
        WALK_LENGTH_5            7 bool;
        UC                       8 bool;
        WB                      14 bool;
        PAGE_2M                 16 bool;
        PAGE_1G                 17 bool;
        INVEPT                  20 bool;
        ACCESSED_DIRTY          21 bool;
        ADVANCED_EXIT_INFORMATION 22 bool;
        SUPERVISOR_SHADOW_STACK 23 bool;
        INVEPT_SINGLE           25 bool;
        INVEPT_ALL              26 bool;
        INVVPID                 32 bool;
        INVVPID_ADDRESS         40 bool;
        INVVPID_SINGLE          41 bool;
        INVVPID_ALL             42 bool;
        INVVPID_RETAIN_GLOBALS  43 bool;
        HLAT_PREFIX_SIZE     53:48 u8;
    }
}

impl EptVpidCap {
    /// The bits that tell of EPT; the others tell of VPID.
    const EPT: u64 = 0xffff_ffff;
}

/// IA32_VMX_VMFUNC, bit 0: EPTP switching. SDM Vol. 3, "VM Functions".
pub const EPTP_SWITCHING: u64 = 1 << 0;

/// The settings that a word of controls allows. SDM Vol. 3, "Reserved Controls and Default Settings".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    /// Controls that must be 1: the bits whose 0-setting is not allowed.
    pub must_be_one: u64,
    /// Controls that may be 1: the bits whose 1-setting is allowed.
    pub may_be_one: u64,
}

impl Allowed {
    /// From the format of a 32-bit word's MSR: must-be-1 below, may-be-1 above.
    const fn from_dwords(msr: u64) -> Self {
        Self { must_be_one: msr & 0xffff_ffff, may_be_one: msr >> 32 }
    }
    /// From the format of a 64-bit word's MSR: may-be-1 only.
    const fn from_ones(msr: u64) -> Self {
        Self { must_be_one: 0, may_be_one: msr }
    }
    const fn dwords(self) -> u64 {
        self.may_be_one << 32 | self.must_be_one
    }

    /// Is this a legal value of the word?
    #[inline(always)]
    pub const fn permits(self, value: u64) -> bool {
        value & self.must_be_one == self.must_be_one && value & !self.may_be_one == 0
    }

    /// What `self` and `other` both can do; what either must be stays, unless the other cannot.
    const fn and(self, other: Self) -> Self {
        let may_be_one = self.may_be_one & other.may_be_one;
        Self { must_be_one: (self.must_be_one | other.must_be_one) & may_be_one, may_be_one }
    }
}

/// What CPUID, not a capability MSR, tells and VM entry checks: bits that registers may have, and features.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FromCpuid {
    /// Bits of IA32_EFER that may be 1.
    pub efer: u64,
    /// Bits of IA32_DEBUGCTL that may be 1.
    pub debugctl: u64,
    /// Bits of IA32_PERF_GLOBAL_CTRL that may be 1.
    pub perf_global_ctrl: u64,
    /// Restricted transactional memory: pending debug exceptions may have bit RTM.
    pub rtm: bool,
    /// SGX: the interruptibility state may have bit "enclave interruption".
    pub sgx: bool,
}

impl Default for FromCpuid {
    /// 64-bit, with SYSCALL and execute-disable, with LBR and BTF, without performance monitoring, RTM, SGX.
    fn default() -> Self {
        let debugctl = debugctl::LBR | debugctl::BTF;
        Self { efer: efer::ALL, debugctl, perf_global_ctrl: 0, rtm: false, sgx: false }
    }
}

/// The VMX capability MSRs of a processor, with its address widths. Default: a processor without VMX.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// IA32_VMX_BASIC.
    pub basic: VmxBasic,
    /// IA32_VMX_MISC.
    pub misc: VmxMisc,
    /// What the checks go by, in the order of [`Word::ALL`]: the TRUE MSRs where they exist.
    pub controls: [Allowed; Word::ALL.len()],
    /// IA32_VMX_PINBASED_CTLS, _PROCBASED_CTLS, _EXIT_CTLS, _ENTRY_CTLS: default1 controls read as must-be-1.
    pub legacy: [Allowed; 4],
    /// Bits of CR0 that must be 1.
    pub cr0_fixed0: u64,
    /// Bits of CR0 that may be 1.
    pub cr0_fixed1: u64,
    /// Bits of CR4 that must be 1.
    pub cr4_fixed0: u64,
    /// Bits of CR4 that may be 1.
    pub cr4_fixed1: u64,
    /// IA32_VMX_VMCS_ENUM.
    pub vmcs_enum: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: EptVpidCap,
    /// IA32_VMX_VMFUNC.
    pub vmfunc: u64,
    /// Physical-address width: bits 7:0 of CPUID.80000008H:EAX.
    pub physical_width: u32,
    /// Linear-address width: bits 15:8 of CPUID.80000008H:EAX.
    pub linear_width: u32,
    /// What CPUID tells besides.
    pub cpuid: FromCpuid,
}

/// The words of [`Capabilities::legacy`], with their legacy and their TRUE MSRs.
#[rustfmt::skip]
const LEGACY: [(Word, u32, u32); 4] = [
    (Word::PinBased, IA32_VMX_PINBASED_CTLS,  IA32_VMX_TRUE_PINBASED_CTLS),
    (Word::Primary,  IA32_VMX_PROCBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS),
    (Word::Exit,     IA32_VMX_EXIT_CTLS,      IA32_VMX_TRUE_EXIT_CTLS),
    (Word::Entry,    IA32_VMX_ENTRY_CTLS,     IA32_VMX_TRUE_ENTRY_CTLS),
];

/// What is of no use without something else: a control, and the controls of which it needs one.
/// SDM Vol. 3, "VM-Execution Control Fields", "VM-Exit Control Fields" (the checks of VM entry).
#[rustfmt::skip]
const NEEDS: &[(Control, &[Control])] = &[
    (VIRTUAL_NMIS,                           &[NMI_EXITING]),
    (NMI_WINDOW_EXITING,                     &[VIRTUAL_NMIS]),
    (VIRTUALIZE_X2APIC_MODE,                 &[USE_TPR_SHADOW]),
    (APIC_REGISTER_VIRTUALIZATION,           &[USE_TPR_SHADOW]),
    (VIRTUAL_INTERRUPT_DELIVERY,             &[USE_TPR_SHADOW]),
    (VIRTUAL_INTERRUPT_DELIVERY,             &[EXTERNAL_INTERRUPT_EXITING]),
    (PROCESS_POSTED_INTERRUPTS,              &[VIRTUAL_INTERRUPT_DELIVERY]),
    (PROCESS_POSTED_INTERRUPTS,              &[ACKNOWLEDGE_INTERRUPT_ON_EXIT]),
    (UNRESTRICTED_GUEST,                     &[ENABLE_EPT]),
    (ENABLE_PML,                             &[ENABLE_EPT]),
    (EPT_VIOLATION_VE,                       &[ENABLE_EPT]),
    (MODE_BASED_EXECUTE_CONTROL_FOR_EPT,     &[ENABLE_EPT]),
    (SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT,     &[ENABLE_EPT]),
    (INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES, &[ENABLE_EPT]),
    (ENABLE_HLAT,                            &[ENABLE_EPT]),
    (EPT_PAGING_WRITE_CONTROL,               &[ENABLE_EPT]),
    (GUEST_PAGING_VERIFICATION,              &[ENABLE_EPT]),
    (IPI_VIRTUALIZATION,                     &[USE_TPR_SHADOW]),
    (APIC_TIMER_VIRTUALIZATION,              &[VIRTUAL_INTERRUPT_DELIVERY]),
    (SAVE_VMX_PREEMPTION_TIMER_VALUE,        &[ACTIVATE_VMX_PREEMPTION_TIMER]),
];

impl Capabilities {
    /// Reads the capability MSRs; `read` gives `None` for one that does not exist.
    pub fn from_msrs(
        read: impl Fn(u32) -> Option<u64>,
        physical_width: u32,
        linear_width: u32,
    ) -> Capabilities {
        let msr = |index| read(index).unwrap_or(0);
        let mut caps = Self {
            basic: VmxBasic(msr(IA32_VMX_BASIC)),
            misc: VmxMisc(msr(IA32_VMX_MISC)),
            legacy: LEGACY.map(|(_, legacy, _)| Allowed::from_dwords(msr(legacy))),
            cr0_fixed0: msr(IA32_VMX_CR0_FIXED0),
            cr0_fixed1: msr(IA32_VMX_CR0_FIXED1),
            cr4_fixed0: msr(IA32_VMX_CR4_FIXED0),
            cr4_fixed1: msr(IA32_VMX_CR4_FIXED1),
            vmcs_enum: msr(IA32_VMX_VMCS_ENUM),
            ept_vpid: EptVpidCap(msr(IA32_VMX_EPT_VPID_CAP)),
            vmfunc: msr(IA32_VMX_VMFUNC),
            physical_width,
            linear_width,
            ..Self::default()
        };
        let has_true = caps.basic.get(VmxBasic::TRUE_CONTROLS);
        for (word, legacy, true_msr) in LEGACY {
            let index = if has_true { true_msr } else { legacy };
            caps.controls[word as usize] = Allowed::from_dwords(msr(index));
        }
        caps.controls[Word::Secondary as usize] = Allowed::from_dwords(msr(IA32_VMX_PROCBASED_CTLS2));
        caps.controls[Word::Tertiary as usize] = Allowed::from_ones(msr(IA32_VMX_PROCBASED_CTLS3));
        caps.controls[Word::SecondaryExit as usize] = Allowed::from_ones(msr(IA32_VMX_EXIT_CTLS2));
        caps
    }

    /// Does the processor have VMX at all?
    pub fn has_vmx(&self) -> bool {
        self.basic != VmxBasic::default()
    }

    /// What RDMSR of a VMX capability MSR returns; `None` where it does not exist (#GP).
    pub fn msr(&self, index: u32) -> Option<u64> {
        let has_true = self.basic.get(VmxBasic::TRUE_CONTROLS);
        let value = match index {
            IA32_VMX_BASIC => self.basic.0,
            IA32_VMX_PINBASED_CTLS => self.legacy[0].dwords(),
            IA32_VMX_PROCBASED_CTLS => self.legacy[1].dwords(),
            IA32_VMX_EXIT_CTLS => self.legacy[2].dwords(),
            IA32_VMX_ENTRY_CTLS => self.legacy[3].dwords(),
            IA32_VMX_MISC => self.misc.0,
            IA32_VMX_CR0_FIXED0 => self.cr0_fixed0,
            IA32_VMX_CR0_FIXED1 => self.cr0_fixed1,
            IA32_VMX_CR4_FIXED0 => self.cr4_fixed0,
            IA32_VMX_CR4_FIXED1 => self.cr4_fixed1,
            IA32_VMX_VMCS_ENUM => self.vmcs_enum,
            IA32_VMX_PROCBASED_CTLS2 if self.can_be_one(ACTIVATE_SECONDARY_CONTROLS) => {
                self.allowed(Word::Secondary).dwords()
            }
            IA32_VMX_EPT_VPID_CAP if self.can_be_one(ENABLE_EPT) || self.can_be_one(ENABLE_VPID) => {
                self.ept_vpid.0
            }
            IA32_VMX_TRUE_PINBASED_CTLS if has_true => self.allowed(Word::PinBased).dwords(),
            IA32_VMX_TRUE_PROCBASED_CTLS if has_true => self.allowed(Word::Primary).dwords(),
            IA32_VMX_TRUE_EXIT_CTLS if has_true => self.allowed(Word::Exit).dwords(),
            IA32_VMX_TRUE_ENTRY_CTLS if has_true => self.allowed(Word::Entry).dwords(),
            IA32_VMX_VMFUNC if self.can_be_one(ENABLE_VM_FUNCTIONS) => self.vmfunc,
            IA32_VMX_PROCBASED_CTLS3 if self.can_be_one(ACTIVATE_TERTIARY_CONTROLS) => {
                self.allowed(Word::Tertiary).may_be_one
            }
            IA32_VMX_EXIT_CTLS2 if self.can_be_one(ACTIVATE_SECONDARY_EXIT_CONTROLS) => {
                self.allowed(Word::SecondaryExit).may_be_one
            }
            _ => return None,
        };
        self.has_vmx().then_some(value)
    }

    /// The settings that VM entry allows for a word.
    #[inline(always)]
    pub const fn allowed(&self, word: Word) -> Allowed {
        self.controls[word as usize]
    }

    /// Is a control's 1-setting allowed?
    #[inline(always)]
    pub const fn can_be_one(&self, control: Control) -> bool {
        self.allowed(control.word).may_be_one & control.mask() != 0
    }

    /// Is a control's 0-setting forbidden?
    #[inline(always)]
    pub const fn must_be_one(&self, control: Control) -> bool {
        self.allowed(control.word).must_be_one & control.mask() != 0
    }

    /// Do VMREAD and VMWRITE know the field? SDM Vol. 3, "Field Encoding in VMCS".
    pub fn field_exists(&self, field: AnyField) -> bool {
        let row = field.row();
        let controls_exist =
            row.exists_with.is_empty() || row.exists_with.iter().any(|&control| self.can_be_one(control));
        controls_exist
            && match cr3_target(row) {
                Some(number) => number < self.misc.get(VmxMisc::CR3_TARGETS),
                None if field == table::EPTP_LIST_ADDRESS.any() => self.vmfunc & EPTP_SWITCHING != 0,
                None => true,
            }
    }

    /// The bits that a physical address in a VMX structure must not set.
    #[inline(always)]
    pub fn beyond_physical_width(&self) -> u64 {
        let width = if self.basic.get(VmxBasic::ADDRESSES_32_BITS) { 32 } else { self.physical_width };
        u64::MAX.checked_shl(width).unwrap_or(0)
    }

    /// Has the processor Intel 64? SDM Vol. 3, "Basic VMX Information", bit 48.
    #[inline(always)]
    pub fn has_intel_64(&self) -> bool {
        !self.basic.get(VmxBasic::ADDRESSES_32_BITS)
    }

    /// Are bits 63:(N-1) of the address identical, N being the linear-address width?
    #[inline(always)]
    pub fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - self.linear_width.clamp(1, 64);
        ((address << unused) as i64 >> unused) as u64 == address
    }

    /// What both a real part and this implementation can do. The part's VMCS revision, timer rate and widths stay;
    /// what depends on something that went goes with it.
    #[must_use]
    pub fn intersect(real: &Self, implemented: &Self) -> Self {
        let mut caps = Self {
            basic: VmxBasic(real.basic.0 & (implemented.basic.0 | VmxBasic::REVISION.mask()))
                .with(VmxBasic::REGION_SIZE, implemented.basic.get(VmxBasic::REGION_SIZE))
                .with(VmxBasic::MEMORY_TYPE, real.basic.get(VmxBasic::MEMORY_TYPE))
                .with(VmxBasic::ADDRESSES_32_BITS, real.basic.get(VmxBasic::ADDRESSES_32_BITS)),
            misc: VmxMisc(real.misc.0 & implemented.misc.0)
                .with(VmxMisc::PREEMPTION_TIMER_RATE, real.misc.get(VmxMisc::PREEMPTION_TIMER_RATE))
                .with(VmxMisc::MSR_LIST_SIZE, real.misc.get(VmxMisc::MSR_LIST_SIZE))
                .with(
                    VmxMisc::CR3_TARGETS,
                    real.misc.get(VmxMisc::CR3_TARGETS).min(implemented.misc.get(VmxMisc::CR3_TARGETS)),
                ),
            controls: std::array::from_fn(|i| real.controls[i].and(implemented.controls[i])),
            cr0_fixed0: real.cr0_fixed0 | implemented.cr0_fixed0,
            cr0_fixed1: real.cr0_fixed1 & implemented.cr0_fixed1,
            cr4_fixed0: real.cr4_fixed0 | implemented.cr4_fixed0,
            cr4_fixed1: real.cr4_fixed1 & implemented.cr4_fixed1,
            ept_vpid: EptVpidCap(real.ept_vpid.0 & implemented.ept_vpid.0),
            vmfunc: real.vmfunc & implemented.vmfunc,
            legacy: real.legacy,
            vmcs_enum: 0,
            physical_width: real.physical_width,
            linear_width: real.linear_width,
            cpuid: real.cpuid.clone(),
        };
        caps.tie();
        caps
    }

    /// Takes away a control's 1-setting, and all that needs it.
    pub fn forbid(&mut self, control: Control) {
        self.controls[control.word as usize].may_be_one &= !control.mask();
        self.tie();
    }

    /// Drops what is of no use without something that is not there, and derives what follows from the rest.
    pub fn tie(&mut self) {
        while self.drop_dependents() {}
        for (i, (word, _, _)) in LEGACY.into_iter().enumerate() {
            let allowed = self.allowed(word);
            let default1 = self.legacy[i].must_be_one & allowed.may_be_one;
            self.legacy[i] =
                Allowed { must_be_one: allowed.must_be_one | default1, may_be_one: allowed.may_be_one };
        }
        if !self.can_be_one(ENABLE_EPT) {
            self.ept_vpid.0 &= !EptVpidCap::EPT;
        }
        if !self.can_be_one(ENABLE_VPID) {
            self.ept_vpid.0 &= EptVpidCap::EPT;
        }
        if !self.can_be_one(UNRESTRICTED_GUEST) && !self.can_be_one(IA_32E_MODE_GUEST) {
            self.misc = self.misc.with(VmxMisc::STORES_LMA, false);
        }
        let highest = (0..table::COUNT).map(AnyField::at).filter(|&field| self.field_exists(field));
        self.vmcs_enum = highest.map(|field| u64::from(field.row().index()) << 1).max().unwrap_or(0);
    }

    /// One round of [`Capabilities::tie`]: true if something went.
    fn drop_dependents(&mut self) -> bool {
        let before = (self.controls, self.vmfunc);
        for word in Word::ALL {
            if word.activated_by().is_some_and(|control| !self.can_be_one(control)) {
                self.controls[word as usize] = Allowed::default();
            }
        }
        for (control, needed) in NEEDS {
            if !needed.iter().any(|&other| self.can_be_one(other)) {
                self.drop_control(*control);
            }
        }
        if !self.ept_vpid.get(EptVpidCap::ACCESSED_DIRTY) {
            self.drop_control(ENABLE_PML);
        }
        if !self.can_be_one(ENABLE_EPT) || !self.can_be_one(ENABLE_VM_FUNCTIONS) {
            self.vmfunc &= !EPTP_SWITCHING;
        }
        if self.vmfunc == 0 {
            self.drop_control(ENABLE_VM_FUNCTIONS);
        }
        before != (self.controls, self.vmfunc)
    }

    fn drop_control(&mut self, control: Control) {
        self.controls[control.word as usize].may_be_one &= !control.mask();
    }
}

/// The number of a CR3-target value's field.
fn cr3_target(row: &Row) -> Option<u32> {
    let first = FIELDS[table::CR3_TARGET_VALUE_0.slot()].encoding;
    let last = FIELDS[table::CR3_TARGET_VALUE_3.slot()].encoding;
    (matches!(row.width(), Width::Natural) && (first..=last).contains(&row.encoding))
        .then(|| (row.encoding - first) >> 1)
}

const _: () = {
    let mut i = 0;
    while i < Word::ALL.len() {
        assert!(Word::ALL[i] as usize == i, "a word's place in Word::ALL is its discriminant");
        i += 1;
    }
};
