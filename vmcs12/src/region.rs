//! The VMCS region in guest memory: 4 KiB in a fixed, versioned layout.
//! SDM Vol. 3, "Format of the VMCS Region" leaves the data's layout to the processor.

use crate::field::table::*;
use crate::field::{AnyField, Vmcs, Width};

/// Bytes of a region.
pub const SIZE: usize = 4096;
/// Version of the layout below. A changed offset is a new version.
pub const LAYOUT_VERSION: u32 = 1;

/// Byte offset of the revision identifier and the shadow-VMCS indicator.
pub const REVISION: usize = 0;
/// Byte offset of the VMX-abort indicator.
pub const ABORT_INDICATOR: usize = 4;
/// Byte offset of the launch state.
pub const LAUNCH_STATE: usize = 8;
/// The first dword, bit 31: shadow-VMCS indicator. SDM Vol. 3, "Format of the VMCS Region".
pub const SHADOW_INDICATOR: u32 = 1 << 31;

/// Where the fields begin that KVM's layout lacks; below it, fields stand where KVM has them.
const OURS: u16 = 1024;

struct Place {
    field: AnyField,
    offset: u16,
}

const fn row(field: AnyField, offset: u16) -> Place {
    Place { field, offset }
}

/// Byte offset of every field, in the order of the field table.
#[rustfmt::skip]
static PLACES: [Place; COUNT] = [
    // field                                                    byte
    row(VPID.any(),                                               960),
    row(POSTED_INTERRUPT_NOTIFICATION_VECTOR.any(),               962),
    row(EPTP_INDEX.any(),                                        1024),
    row(HLAT_PREFIX_SIZE.any(),                                  1032),
    row(LAST_PID_POINTER_INDEX.any(),                            1040),
    row(VIRTUAL_TIMER_VECTOR.any(),                              1048),
    row(GUEST_ES_SELECTOR.any(),                                  964),
    row(GUEST_CS_SELECTOR.any(),                                  966),
    row(GUEST_SS_SELECTOR.any(),                                  968),
    row(GUEST_DS_SELECTOR.any(),                                  970),
    row(GUEST_FS_SELECTOR.any(),                                  972),
    row(GUEST_GS_SELECTOR.any(),                                  974),
    row(GUEST_LDTR_SELECTOR.any(),                                976),
    row(GUEST_TR_SELECTOR.any(),                                  978),
    row(GUEST_INTERRUPT_STATUS.any(),                             980),
    row(PML_INDEX.any(),                                          996),
    row(GUEST_UINV.any(),                                        1056),
    row(HOST_ES_SELECTOR.any(),                                   982),
    row(HOST_CS_SELECTOR.any(),                                   984),
    row(HOST_SS_SELECTOR.any(),                                   986),
    row(HOST_DS_SELECTOR.any(),                                   988),
    row(HOST_FS_SELECTOR.any(),                                   990),
    row(HOST_GS_SELECTOR.any(),                                   992),
    row(HOST_TR_SELECTOR.any(),                                   994),
    row(ADDRESS_OF_IO_BITMAP_A.any(),                              40),
    row(ADDRESS_OF_IO_BITMAP_B.any(),                              48),
    row(ADDRESS_OF_MSR_BITMAPS.any(),                              56),
    row(VM_EXIT_MSR_STORE_ADDRESS.any(),                           64),
    row(VM_EXIT_MSR_LOAD_ADDRESS.any(),                            72),
    row(VM_ENTRY_MSR_LOAD_ADDRESS.any(),                           80),
    row(EXECUTIVE_VMCS_POINTER.any(),                            1064),
    row(PML_ADDRESS.any(),                                        312),
    row(TSC_OFFSET.any(),                                          88),
    row(VIRTUAL_APIC_ADDRESS.any(),                                96),
    row(APIC_ACCESS_ADDRESS.any(),                                104),
    row(POSTED_INTERRUPT_DESCRIPTOR_ADDRESS.any(),                112),
    row(VM_FUNCTION_CONTROLS.any(),                               296),
    row(EPTP.any(),                                               120),
    row(EOI_EXIT_BITMAP_0.any(),                                  128),
    row(EOI_EXIT_BITMAP_1.any(),                                  136),
    row(EOI_EXIT_BITMAP_2.any(),                                  144),
    row(EOI_EXIT_BITMAP_3.any(),                                  152),
    row(EPTP_LIST_ADDRESS.any(),                                  304),
    row(VMREAD_BITMAP_ADDRESS.any(),                              280),
    row(VMWRITE_BITMAP_ADDRESS.any(),                             288),
    row(VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS.any(),      1072),
    row(XSS_EXITING_BITMAP.any(),                                 160),
    row(ENCLS_EXITING_BITMAP.any(),                               320),
    row(SPPTP.any(),                                             1080),
    row(TSC_MULTIPLIER.any(),                                     328),
    row(TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),    1088),
    row(ENCLV_EXITING_BITMAP.any(),                              1096),
    row(LOW_PASID_DIRECTORY_ADDRESS.any(),                       1104),
    row(HIGH_PASID_DIRECTORY_ADDRESS.any(),                      1112),
    row(SEAM_SHARED_EPT_POINTER.any(),                           1120),
    row(PCONFIG_EXITING_BITMAP.any(),                            1128),
    row(HLATP.any(),                                             1136),
    row(PID_POINTER_TABLE_ADDRESS.any(),                         1144),
    row(SECONDARY_VM_EXIT_CONTROLS.any(),                        1152),
    row(IA32_SPEC_CTRL_MASK.any(),                               1160),
    row(IA32_SPEC_CTRL_SHADOW.any(),                             1168),
    row(GUEST_DEADLINE_SHADOW.any(),                             1176),
    row(INJECTED_EVENT_DATA.any(),                               1184),
    row(GUEST_PHYSICAL_ADDRESS.any(),                             168),
    row(MSR_DATA.any(),                                          1192),
    row(ORIGINAL_EVENT_DATA.any(),                               1200),
    row(VMCS_LINK_POINTER.any(),                                  176),
    row(GUEST_IA32_DEBUGCTL.any(),                                184),
    row(GUEST_IA32_PAT.any(),                                     192),
    row(GUEST_IA32_EFER.any(),                                    200),
    row(GUEST_IA32_PERF_GLOBAL_CTRL.any(),                        208),
    row(GUEST_PDPTE0.any(),                                       216),
    row(GUEST_PDPTE1.any(),                                       224),
    row(GUEST_PDPTE2.any(),                                       232),
    row(GUEST_PDPTE3.any(),                                       240),
    row(GUEST_IA32_BNDCFGS.any(),                                 248),
    row(GUEST_IA32_RTIT_CTL.any(),                               1208),
    row(GUEST_IA32_LBR_CTL.any(),                                1216),
    row(GUEST_IA32_PKRS.any(),                                   1224),
    row(GUEST_IA32_FRED_CONFIG.any(),                            1232),
    row(GUEST_IA32_FRED_RSP1.any(),                              1240),
    row(GUEST_IA32_FRED_RSP2.any(),                              1248),
    row(GUEST_IA32_FRED_RSP3.any(),                              1256),
    row(GUEST_IA32_FRED_STKLVLS.any(),                           1264),
    row(GUEST_IA32_FRED_SSP1.any(),                              1272),
    row(GUEST_IA32_FRED_SSP2.any(),                              1280),
    row(GUEST_IA32_FRED_SSP3.any(),                              1288),
    row(GUEST_IA32_SPEC_CTRL.any(),                              1296),
    row(GUEST_DEADLINE.any(),                                    1304),
    row(HOST_IA32_PAT.any(),                                      256),
    row(HOST_IA32_EFER.any(),                                     264),
    row(HOST_IA32_PERF_GLOBAL_CTRL.any(),                         272),
    row(HOST_IA32_PKRS.any(),                                    1312),
    row(HOST_IA32_FRED_CONFIG.any(),                             1320),
    row(HOST_IA32_FRED_RSP1.any(),                               1328),
    row(HOST_IA32_FRED_RSP2.any(),                               1336),
    row(HOST_IA32_FRED_RSP3.any(),                               1344),
    row(HOST_IA32_FRED_STKLVLS.any(),                            1352),
    row(HOST_IA32_FRED_SSP1.any(),                               1360),
    row(HOST_IA32_FRED_SSP2.any(),                               1368),
    row(HOST_IA32_FRED_SSP3.any(),                               1376),
    row(HOST_IA32_SPEC_CTRL.any(),                               1384),
    row(PIN_BASED_VM_EXECUTION_CONTROLS.any(),                    744),
    row(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),      748),
    row(EXCEPTION_BITMAP.any(),                                   752),
    row(PAGE_FAULT_ERROR_CODE_MASK.any(),                         756),
    row(PAGE_FAULT_ERROR_CODE_MATCH.any(),                        760),
    row(CR3_TARGET_COUNT.any(),                                   764),
    row(PRIMARY_VM_EXIT_CONTROLS.any(),                           768),
    row(VM_EXIT_MSR_STORE_COUNT.any(),                            772),
    row(VM_EXIT_MSR_LOAD_COUNT.any(),                             776),
    row(VM_ENTRY_CONTROLS.any(),                                  780),
    row(VM_ENTRY_MSR_LOAD_COUNT.any(),                            784),
    row(INJECTED_EVENT_IDENTIFICATION.any(),                      788),
    row(INJECTED_EVENT_ERROR_CODE.any(),                          792),
    row(VM_ENTRY_INSTRUCTION_LENGTH.any(),                        796),
    row(TPR_THRESHOLD.any(),                                      800),
    row(SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS.any(),    804),
    row(PLE_GAP.any(),                                           1392),
    row(PLE_WINDOW.any(),                                        1400),
    row(INSTRUCTION_TIMEOUT_CONTROL.any(),                       1408),
    row(SEAM_GUEST_KEYID.any(),                                  1416),
    row(VM_INSTRUCTION_ERROR.any(),                               808),
    row(EXIT_REASON.any(),                                        812),
    row(EXITING_EVENT_IDENTIFICATION.any(),                       816),
    row(EXITING_EVENT_ERROR_CODE.any(),                           820),
    row(ORIGINAL_EVENT_IDENTIFICATION.any(),                      824),
    row(ORIGINAL_EVENT_ERROR_CODE.any(),                          828),
    row(VM_EXIT_INSTRUCTION_LENGTH.any(),                         832),
    row(VM_EXIT_INSTRUCTION_INFORMATION.any(),                    836),
    row(GUEST_ES_LIMIT.any(),                                     840),
    row(GUEST_CS_LIMIT.any(),                                     844),
    row(GUEST_SS_LIMIT.any(),                                     848),
    row(GUEST_DS_LIMIT.any(),                                     852),
    row(GUEST_FS_LIMIT.any(),                                     856),
    row(GUEST_GS_LIMIT.any(),                                     860),
    row(GUEST_LDTR_LIMIT.any(),                                   864),
    row(GUEST_TR_LIMIT.any(),                                     868),
    row(GUEST_GDTR_LIMIT.any(),                                   872),
    row(GUEST_IDTR_LIMIT.any(),                                   876),
    row(GUEST_ES_ACCESS_RIGHTS.any(),                             880),
    row(GUEST_CS_ACCESS_RIGHTS.any(),                             884),
    row(GUEST_SS_ACCESS_RIGHTS.any(),                             888),
    row(GUEST_DS_ACCESS_RIGHTS.any(),                             892),
    row(GUEST_FS_ACCESS_RIGHTS.any(),                             896),
    row(GUEST_GS_ACCESS_RIGHTS.any(),                             900),
    row(GUEST_LDTR_ACCESS_RIGHTS.any(),                           904),
    row(GUEST_TR_ACCESS_RIGHTS.any(),                             908),
    row(GUEST_INTERRUPTIBILITY_STATE.any(),                       912),
    row(GUEST_ACTIVITY_STATE.any(),                               916),
    row(GUEST_SMBASE.any(),                                      1424),
    row(GUEST_IA32_SYSENTER_CS.any(),                             920),
    row(VMX_PREEMPTION_TIMER_VALUE.any(),                         928),
    row(HOST_IA32_SYSENTER_CS.any(),                              924),
    row(CR0_GUEST_HOST_MASK.any(),                                344),
    row(CR4_GUEST_HOST_MASK.any(),                                352),
    row(CR0_READ_SHADOW.any(),                                    360),
    row(CR4_READ_SHADOW.any(),                                    368),
    row(CR3_TARGET_VALUE_0.any(),                                1432),
    row(CR3_TARGET_VALUE_1.any(),                                1440),
    row(CR3_TARGET_VALUE_2.any(),                                1448),
    row(CR3_TARGET_VALUE_3.any(),                                1456),
    row(EXIT_QUALIFICATION.any(),                                 408),
    row(IO_RCX.any(),                                            1464),
    row(IO_RSI.any(),                                            1472),
    row(IO_RDI.any(),                                            1480),
    row(IO_RIP.any(),                                            1488),
    row(GUEST_LINEAR_ADDRESS.any(),                               416),
    row(GUEST_CR0.any(),                                          424),
    row(GUEST_CR3.any(),                                          432),
    row(GUEST_CR4.any(),                                          440),
    row(GUEST_ES_BASE.any(),                                      448),
    row(GUEST_CS_BASE.any(),                                      456),
    row(GUEST_SS_BASE.any(),                                      464),
    row(GUEST_DS_BASE.any(),                                      472),
    row(GUEST_FS_BASE.any(),                                      480),
    row(GUEST_GS_BASE.any(),                                      488),
    row(GUEST_LDTR_BASE.any(),                                    496),
    row(GUEST_TR_BASE.any(),                                      504),
    row(GUEST_GDTR_BASE.any(),                                    512),
    row(GUEST_IDTR_BASE.any(),                                    520),
    row(GUEST_DR7.any(),                                          528),
    row(GUEST_RSP.any(),                                          536),
    row(GUEST_RIP.any(),                                          544),
    row(GUEST_RFLAGS.any(),                                       552),
    row(GUEST_PENDING_DEBUG_EXCEPTIONS.any(),                     560),
    row(GUEST_IA32_SYSENTER_ESP.any(),                            568),
    row(GUEST_IA32_SYSENTER_EIP.any(),                            576),
    row(GUEST_IA32_S_CET.any(),                                   704),
    row(GUEST_SSP.any(),                                          712),
    row(GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR.any(),                720),
    row(HOST_CR0.any(),                                           584),
    row(HOST_CR3.any(),                                           592),
    row(HOST_CR4.any(),                                           600),
    row(HOST_FS_BASE.any(),                                       608),
    row(HOST_GS_BASE.any(),                                       616),
    row(HOST_TR_BASE.any(),                                       624),
    row(HOST_GDTR_BASE.any(),                                     632),
    row(HOST_IDTR_BASE.any(),                                     640),
    row(HOST_IA32_SYSENTER_ESP.any(),                             648),
    row(HOST_IA32_SYSENTER_EIP.any(),                             656),
    row(HOST_RSP.any(),                                           664),
    row(HOST_RIP.any(),                                           672),
    row(HOST_IA32_S_CET.any(),                                    680),
    row(HOST_SSP.any(),                                           688),
    row(HOST_IA32_INTERRUPT_SSP_TABLE_ADDR.any(),                 696),
];

impl Place {
    const fn size(&self) -> usize {
        match FIELDS[self.field.slot()].width() {
            Width::W16 => 2,
            Width::W32 => 4,
            Width::W64 | Width::Natural => 8,
        }
    }
    fn read(&self, region: &[u8; SIZE]) -> u64 {
        let mut bytes = [0; 8];
        let at = usize::from(self.offset);
        bytes[..self.size()].copy_from_slice(&region[at..at + self.size()]);
        u64::from_le_bytes(bytes)
    }
    fn write(&self, region: &mut [u8; SIZE], value: u64) {
        let at = usize::from(self.offset);
        region[at..at + self.size()].copy_from_slice(&value.to_le_bytes()[..self.size()]);
    }
}

/// Launch state of a VMCS. SDM Vol. 3, "Overview" of virtual-machine control structures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LaunchState {
    /// VMLAUNCH may be used.
    #[default]
    Clear,
    /// VMRESUME may be used.
    Launched,
}

/// The fields of a region.
pub fn load(region: &[u8; SIZE]) -> Vmcs {
    let mut vmcs = Vmcs::default();
    for place in &PLACES {
        vmcs.set_raw(place.field, place.read(region));
    }
    vmcs
}

/// Writes the fields into a region; header and unused bytes keep their values.
pub fn store(vmcs: &Vmcs, region: &mut [u8; SIZE]) {
    for place in &PLACES {
        place.write(region, vmcs.raw(place.field));
    }
}

/// Byte offset of a field and how many bytes it takes.
pub fn place_of(field: AnyField) -> (usize, usize) {
    let place = &PLACES[field.slot()];
    (usize::from(place.offset), place.size())
}

fn dword(region: &[u8; SIZE], at: usize) -> u32 {
    u32::from_le_bytes([region[at], region[at + 1], region[at + 2], region[at + 3]])
}

fn set_dword(region: &mut [u8; SIZE], at: usize, value: u32) {
    region[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The revision identifier, without the shadow-VMCS indicator.
pub fn revision(region: &[u8; SIZE]) -> u32 {
    dword(region, REVISION) & !SHADOW_INDICATOR
}

/// Is the region a shadow VMCS?
pub fn is_shadow(region: &[u8; SIZE]) -> bool {
    dword(region, REVISION) & SHADOW_INDICATOR != 0
}

/// The VMX-abort indicator.
pub fn abort_indicator(region: &[u8; SIZE]) -> u32 {
    dword(region, ABORT_INDICATOR)
}

/// Writes the VMX-abort indicator.
pub fn set_abort_indicator(region: &mut [u8; SIZE], value: u32) {
    set_dword(region, ABORT_INDICATOR, value);
}

/// The launch state.
pub fn launch_state(region: &[u8; SIZE]) -> LaunchState {
    match dword(region, LAUNCH_STATE) {
        0 => LaunchState::Clear,
        _ => LaunchState::Launched,
    }
}

/// Writes the launch state.
pub fn set_launch_state(region: &mut [u8; SIZE], state: LaunchState) {
    set_dword(region, LAUNCH_STATE, state as u32);
}

const _: () = {
    let mut slot = 0;
    while slot < COUNT {
        let place = &PLACES[slot];
        assert!(place.field.slot() == slot, "the rows are in the order of the field table");
        let (start, end) = (place.offset as usize, place.offset as usize + place.size());
        assert!(start >= LAUNCH_STATE + 4 && end <= SIZE, "a field is inside the region, after the header");
        assert!(end <= OURS as usize || start >= OURS as usize, "a field is in KVM's part or in ours");
        let mut other = 0;
        while other < slot {
            let (from, to) =
                (PLACES[other].offset as usize, PLACES[other].offset as usize + PLACES[other].size());
            assert!(end <= from || to <= start, "no two fields overlap");
            other += 1;
        }
        slot += 1;
    }
};
