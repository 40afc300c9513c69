//! VMX capabilities by name, for the command line.

use crate::caps::{Capabilities, EptVpidCap, VmxBasic, VmxMisc};
use crate::control::*;

/// A bit of a capability MSR.
#[derive(Clone, Copy, Debug)]
pub enum Capability {
    /// A control's 1-setting.
    Setting(Control),
    /// Bits of IA32_VMX_BASIC.
    Basic(u64),
    /// Bits of IA32_VMX_MISC.
    Misc(u64),
    /// Bits of IA32_VMX_EPT_VPID_CAP.
    EptVpid(u64),
}
use Capability::{Basic, EptVpid, Misc, Setting};

/// The table.
#[rustfmt::skip]
pub const VMX_FEATURES: &[(&str, Capability)] = &[
    ("true_controls",                 Basic(VmxBasic::TRUE_CONTROLS.mask())),
    ("ins_outs_info",                 Basic(VmxBasic::INS_OUTS_INFORMATION.mask())),
    ("inject_error_code_any_vector",  Basic(VmxBasic::ANY_ERROR_CODE.mask())),
    ("activity_hlt",                  Misc(VmxMisc::HLT.mask())),
    ("activity_shutdown",             Misc(VmxMisc::SHUTDOWN.mask())),
    ("activity_wait_for_sipi",        Misc(VmxMisc::WAIT_FOR_SIPI.mask())),
    ("vmwrite_any_field",             Misc(VmxMisc::VMWRITE_ANY_FIELD.mask())),
    ("inject_zero_length",            Misc(VmxMisc::ZERO_LENGTH_INJECTION.mask())),
    ("nmi_exiting",                   Setting(NMI_EXITING)),
    ("virtual_nmi",                   Setting(VIRTUAL_NMIS)),
    ("preemption_timer",              Setting(ACTIVATE_VMX_PREEMPTION_TIMER)),
    ("posted_interrupts",             Setting(PROCESS_POSTED_INTERRUPTS)),
    ("tsc_offsetting",                Setting(USE_TSC_OFFSETTING)),
    ("tpr_shadow",                    Setting(USE_TPR_SHADOW)),
    ("nmi_window",                    Setting(NMI_WINDOW_EXITING)),
    ("io_bitmaps",                    Setting(USE_IO_BITMAPS)),
    ("monitor_trap_flag",             Setting(MONITOR_TRAP_FLAG)),
    ("msr_bitmaps",                   Setting(USE_MSR_BITMAPS)),
    ("secondary_controls",            Setting(ACTIVATE_SECONDARY_CONTROLS)),
    ("virtualize_apic_accesses",      Setting(VIRTUALIZE_APIC_ACCESSES)),
    ("ept",                           Setting(ENABLE_EPT)),
    ("descriptor_table_exiting",      Setting(DESCRIPTOR_TABLE_EXITING)),
    ("virtualize_x2apic",             Setting(VIRTUALIZE_X2APIC_MODE)),
    ("vpid",                          Setting(ENABLE_VPID)),
    ("wbinvd_exiting",                Setting(WBINVD_EXITING)),
    ("unrestricted_guest",            Setting(UNRESTRICTED_GUEST)),
    ("apic_register_virtualization",  Setting(APIC_REGISTER_VIRTUALIZATION)),
    ("virtual_interrupt_delivery",    Setting(VIRTUAL_INTERRUPT_DELIVERY)),
    ("pause_loop_exiting",            Setting(PAUSE_LOOP_EXITING)),
    ("rdrand_exiting",                Setting(RDRAND_EXITING)),
    ("vmfunc",                        Setting(ENABLE_VM_FUNCTIONS)),
    ("vmcs_shadowing",                Setting(VMCS_SHADOWING)),
    ("rdseed_exiting",                Setting(RDSEED_EXITING)),
    ("pml",                           Setting(ENABLE_PML)),
    ("ept_violation_ve",              Setting(EPT_VIOLATION_VE)),
    ("mbec",                          Setting(MODE_BASED_EXECUTE_CONTROL_FOR_EPT)),
    ("spp",                           Setting(SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT)),
    ("tsc_scaling",                   Setting(USE_TSC_SCALING)),
    ("ept_execute_only",              EptVpid(EptVpidCap::EXECUTE_ONLY.mask())),
    ("ept_walk5",                     EptVpid(EptVpidCap::WALK_LENGTH_5.mask())),
    ("ept_uc",                        EptVpid(EptVpidCap::UC.mask())),
    ("ept_2mb",                       EptVpid(EptVpidCap::PAGE_2M.mask())),
    ("ept_1gb",                       EptVpid(EptVpidCap::PAGE_1G.mask())),
    ("ept_ad",                        EptVpid(EptVpidCap::ACCESSED_DIRTY.mask())),
    ("ept_advanced_exit_info",        EptVpid(EptVpidCap::ADVANCED_EXIT_INFORMATION.mask())),
    ("invept_single",                 EptVpid(EptVpidCap::INVEPT_SINGLE.mask())),
    ("invept_all",                    EptVpid(EptVpidCap::INVEPT_ALL.mask())),
    ("invvpid_addr",                  EptVpid(EptVpidCap::INVVPID_ADDRESS.mask())),
    ("invvpid_single",                EptVpid(EptVpidCap::INVVPID_SINGLE.mask())),
    ("invvpid_all",                   EptVpid(EptVpidCap::INVVPID_ALL.mask())),
    ("invvpid_single_retain_globals", EptVpid(EptVpidCap::INVVPID_RETAIN_GLOBALS.mask())),
    ("exit_ack_interrupt",            Setting(ACKNOWLEDGE_INTERRUPT_ON_EXIT)),
    ("exit_save_pat",                 Setting(SAVE_IA32_PAT)),
    ("exit_load_pat",                 Setting(LOAD_IA32_PAT_ON_EXIT)),
    ("exit_save_efer",                Setting(SAVE_IA32_EFER)),
    ("exit_load_efer",                Setting(LOAD_IA32_EFER_ON_EXIT)),
    ("exit_save_preemption_timer",    Setting(SAVE_VMX_PREEMPTION_TIMER_VALUE)),
    ("exit_load_perf_global_ctrl",    Setting(LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT)),
    ("entry_load_pat",                Setting(LOAD_IA32_PAT_ON_ENTRY)),
    ("entry_load_efer",               Setting(LOAD_IA32_EFER_ON_ENTRY)),
    ("entry_load_perf_global_ctrl",   Setting(LOAD_IA32_PERF_GLOBAL_CTRL_ON_ENTRY)),
];

/// The capability with this name.
pub fn named(name: &str) -> Option<Capability> {
    VMX_FEATURES.iter().find(|row| row.0 == name).map(|row| row.1)
}

impl Capability {
    /// Do the MSRs announce it?
    pub fn is_in(self, caps: &Capabilities) -> bool {
        match self {
            Setting(control) => caps.can_be_one(control),
            Basic(bits) => caps.basic.0 & bits == bits,
            Misc(bits) => caps.misc.0 & bits == bits,
            EptVpid(bits) => caps.ept_vpid.0 & bits == bits,
        }
    }

    /// Takes it away, and all that needs it.
    pub fn remove_from(self, caps: &mut Capabilities) {
        match self {
            Setting(control) => caps.controls[control.word as usize].may_be_one &= !control.mask(),
            Basic(bits) => caps.basic.0 &= !bits,
            Misc(bits) => caps.misc.0 &= !bits,
            EptVpid(bits) => caps.ept_vpid.0 &= !bits,
        }
        caps.tie();
    }

    /// Announces it, as `implemented` has it. What it needs must be asked for by name, but for EPT's and VPID's own
    /// abilities, which come with them.
    pub fn add_to(self, caps: &mut Capabilities, implemented: &Capabilities) {
        match self {
            Setting(control) => {
                if let Some(activation) = control.word.activated_by() {
                    caps.controls[activation.word as usize].may_be_one |= activation.mask();
                }
                caps.controls[control.word as usize].may_be_one |= control.mask();
                if matches!(control, ENABLE_EPT | ENABLE_VPID) {
                    caps.ept_vpid.0 |= implemented.ept_vpid.0;
                }
            }
            Basic(bits) => caps.basic.0 |= bits,
            Misc(bits) => caps.misc.0 |= bits,
            EptVpid(bits) => caps.ept_vpid.0 |= bits,
        }
        caps.tie();
    }
}
