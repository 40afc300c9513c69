//! Every VMCS field, one row each, in the order of the encodings. SDM Vol. 3, "Field Encoding in VMCS".

use super::{Field, Row, slot_key};
use crate::addr::Pa;
use crate::arch::eptp::Eptp;
use crate::arch::event::{InjectedEvent, RecordedEvent};
use crate::arch::segment::AccessRights;
use crate::arch::state::{InterruptibilityState, PendingDebugExceptions};
use crate::control::*;

/// No field has this slot.
pub(crate) const NO_SLOT: u16 = u16::MAX;

macro_rules! vmcs_fields {
    ($($encoding:literal $name:ident: $t:ty => [$($control:ident),*];)*) => {
        /// The table itself.
        pub static FIELDS: [Row; COUNT] = [$(Row { encoding: $encoding, name: stringify!($name), exists_with: &[$($control),*] }),*];
        /// How many fields there are, high halves not counted.
        pub const COUNT: usize = [$($encoding),*].len();
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "slots are named as their fields")]
        enum Slot { $($name),* }
        $(#[doc = concat!("Field ", stringify!($encoding), ".")]
        pub const $name: Field<$t> = Field::at(Slot::$name as usize, $encoding);)*
    };
}

#[rustfmt::skip]
vmcs_fields! {
    // encoding  name                                         value        exists with
    0x0000       VPID:                                          u16                     => [ENABLE_VPID];
    0x0002       POSTED_INTERRUPT_NOTIFICATION_VECTOR:          u16                     => [PROCESS_POSTED_INTERRUPTS];
    0x0004       EPTP_INDEX:                                    u16                     => [EPT_VIOLATION_VE];
    0x0006       HLAT_PREFIX_SIZE:                              u16                     => [ENABLE_HLAT];
    0x0008       LAST_PID_POINTER_INDEX:                        u16                     => [IPI_VIRTUALIZATION];
    0x000a       VIRTUAL_TIMER_VECTOR:                          u16                     => [APIC_TIMER_VIRTUALIZATION];
    0x0800       GUEST_ES_SELECTOR:                             u16                     => [];
    0x0802       GUEST_CS_SELECTOR:                             u16                     => [];
    0x0804       GUEST_SS_SELECTOR:                             u16                     => [];
    0x0806       GUEST_DS_SELECTOR:                             u16                     => [];
    0x0808       GUEST_FS_SELECTOR:                             u16                     => [];
    0x080a       GUEST_GS_SELECTOR:                             u16                     => [];
    0x080c       GUEST_LDTR_SELECTOR:                           u16                     => [];
    0x080e       GUEST_TR_SELECTOR:                             u16                     => [];
    0x0810       GUEST_INTERRUPT_STATUS:                        u16                     => [VIRTUAL_INTERRUPT_DELIVERY];
    0x0812       PML_INDEX:                                     u16                     => [ENABLE_PML];
    0x0814       GUEST_UINV:                                    u16                     => [CLEAR_UINV, LOAD_UINV];
    0x0c00       HOST_ES_SELECTOR:                              u16                     => [];
    0x0c02       HOST_CS_SELECTOR:                              u16                     => [];
    0x0c04       HOST_SS_SELECTOR:                              u16                     => [];
    0x0c06       HOST_DS_SELECTOR:                              u16                     => [];
    0x0c08       HOST_FS_SELECTOR:                              u16                     => [];
    0x0c0a       HOST_GS_SELECTOR:                              u16                     => [];
    0x0c0c       HOST_TR_SELECTOR:                              u16                     => [];
    0x2000       ADDRESS_OF_IO_BITMAP_A:                        Pa                      => [];
    0x2002       ADDRESS_OF_IO_BITMAP_B:                        Pa                      => [];
    0x2004       ADDRESS_OF_MSR_BITMAPS:                        Pa                      => [USE_MSR_BITMAPS];
    0x2006       VM_EXIT_MSR_STORE_ADDRESS:                     Pa                      => [];
    0x2008       VM_EXIT_MSR_LOAD_ADDRESS:                      Pa                      => [];
    0x200a       VM_ENTRY_MSR_LOAD_ADDRESS:                     Pa                      => [];
    0x200c       EXECUTIVE_VMCS_POINTER:                        Pa                      => [];
    0x200e       PML_ADDRESS:                                   Pa                      => [ENABLE_PML];
    0x2010       TSC_OFFSET:                                    u64                     => [];
    0x2012       VIRTUAL_APIC_ADDRESS:                          Pa                      => [USE_TPR_SHADOW];
    0x2014       APIC_ACCESS_ADDRESS:                           Pa                      => [VIRTUALIZE_APIC_ACCESSES];
    0x2016       POSTED_INTERRUPT_DESCRIPTOR_ADDRESS:           Pa                      => [PROCESS_POSTED_INTERRUPTS];
    0x2018       VM_FUNCTION_CONTROLS:                          u64                     => [ENABLE_VM_FUNCTIONS];
    0x201a       EPTP:                                          Eptp                    => [ENABLE_EPT];
    0x201c       EOI_EXIT_BITMAP_0:                             u64                     => [VIRTUAL_INTERRUPT_DELIVERY];
    0x201e       EOI_EXIT_BITMAP_1:                             u64                     => [VIRTUAL_INTERRUPT_DELIVERY];
    0x2020       EOI_EXIT_BITMAP_2:                             u64                     => [VIRTUAL_INTERRUPT_DELIVERY];
    0x2022       EOI_EXIT_BITMAP_3:                             u64                     => [VIRTUAL_INTERRUPT_DELIVERY];
    0x2024       EPTP_LIST_ADDRESS:                             Pa                      => [ENABLE_VM_FUNCTIONS];
    0x2026       VMREAD_BITMAP_ADDRESS:                         Pa                      => [VMCS_SHADOWING];
    0x2028       VMWRITE_BITMAP_ADDRESS:                        Pa                      => [VMCS_SHADOWING];
    0x202a       VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS:  Pa                      => [EPT_VIOLATION_VE];
    0x202c       XSS_EXITING_BITMAP:                            u64                     => [ENABLE_XSAVES_XRSTORS];
    0x202e       ENCLS_EXITING_BITMAP:                          u64                     => [ENABLE_ENCLS_EXITING];
    0x2030       SPPTP:                                         u64                     => [SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT];
    0x2032       TSC_MULTIPLIER:                                u64                     => [USE_TSC_SCALING];
    0x2034       TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: u64                     => [ACTIVATE_TERTIARY_CONTROLS];
    0x2036       ENCLV_EXITING_BITMAP:                          u64                     => [ENABLE_ENCLV_EXITING];
    0x2038       LOW_PASID_DIRECTORY_ADDRESS:                   Pa                      => [PASID_TRANSLATION];
    0x203a       HIGH_PASID_DIRECTORY_ADDRESS:                  Pa                      => [PASID_TRANSLATION];
    0x203c       SEAM_SHARED_EPT_POINTER:                       u64                     => [SEAM_GUEST_PHYSICAL_ADDRESS_WIDTH];
    0x203e       PCONFIG_EXITING_BITMAP:                        u64                     => [ENABLE_PCONFIG];
    0x2040       HLATP:                                         u64                     => [ENABLE_HLAT];
    0x2042       PID_POINTER_TABLE_ADDRESS:                     Pa                      => [IPI_VIRTUALIZATION];
    0x2044       SECONDARY_VM_EXIT_CONTROLS:                    u64                     => [ACTIVATE_SECONDARY_EXIT_CONTROLS];
    0x204a       IA32_SPEC_CTRL_MASK:                           u64                     => [VIRTUALIZE_IA32_SPEC_CTRL];
    0x204c       IA32_SPEC_CTRL_SHADOW:                         u64                     => [VIRTUALIZE_IA32_SPEC_CTRL];
    0x204e       GUEST_DEADLINE_SHADOW:                         u64                     => [APIC_TIMER_VIRTUALIZATION];
    0x2052       INJECTED_EVENT_DATA:                           u64                     => [LOAD_FRED_ON_ENTRY];
    0x2400       GUEST_PHYSICAL_ADDRESS:                        u64                     => [ENABLE_EPT];
    0x2402       MSR_DATA:                                      u64                     => [ENABLE_MSR_LIST_INSTRUCTIONS];
    0x2404       ORIGINAL_EVENT_DATA:                           u64                     => [LOAD_FRED_ON_ENTRY];
    0x2800       VMCS_LINK_POINTER:                             Pa                      => [];
    0x2802       GUEST_IA32_DEBUGCTL:                           u64                     => [];
    0x2804       GUEST_IA32_PAT:                                u64                     => [LOAD_IA32_PAT_ON_ENTRY, SAVE_IA32_PAT];
    0x2806       GUEST_IA32_EFER:                               u64                     => [LOAD_IA32_EFER_ON_ENTRY, SAVE_IA32_EFER];
    0x2808       GUEST_IA32_PERF_GLOBAL_CTRL:                   u64                     => [LOAD_IA32_PERF_GLOBAL_CTRL_ON_ENTRY];
    0x280a       GUEST_PDPTE0:                                  u64                     => [ENABLE_EPT];
    0x280c       GUEST_PDPTE1:                                  u64                     => [ENABLE_EPT];
    0x280e       GUEST_PDPTE2:                                  u64                     => [ENABLE_EPT];
    0x2810       GUEST_PDPTE3:                                  u64                     => [ENABLE_EPT];
    0x2812       GUEST_IA32_BNDCFGS:                            u64                     => [LOAD_IA32_BNDCFGS, CLEAR_IA32_BNDCFGS];
    0x2814       GUEST_IA32_RTIT_CTL:                           u64                     => [LOAD_IA32_RTIT_CTL, CLEAR_IA32_RTIT_CTL];
    0x2816       GUEST_IA32_LBR_CTL:                            u64                     => [LOAD_GUEST_IA32_LBR_CTL, CLEAR_IA32_LBR_CTL];
    0x2818       GUEST_IA32_PKRS:                               u64                     => [LOAD_PKRS_ON_ENTRY];
    0x281a       GUEST_IA32_FRED_CONFIG:                        u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x281c       GUEST_IA32_FRED_RSP1:                          u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x281e       GUEST_IA32_FRED_RSP2:                          u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x2820       GUEST_IA32_FRED_RSP3:                          u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x2822       GUEST_IA32_FRED_STKLVLS:                       u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x2824       GUEST_IA32_FRED_SSP1:                          u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x2826       GUEST_IA32_FRED_SSP2:                          u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x2828       GUEST_IA32_FRED_SSP3:                          u64                     => [LOAD_FRED_ON_ENTRY, SAVE_FRED];
    0x282e       GUEST_IA32_SPEC_CTRL:                          u64                     => [LOAD_IA32_SPEC_CTRL_ON_ENTRY];
    0x2830       GUEST_DEADLINE:                                u64                     => [APIC_TIMER_VIRTUALIZATION];
    0x2c00       HOST_IA32_PAT:                                 u64                     => [LOAD_IA32_PAT_ON_EXIT];
    0x2c02       HOST_IA32_EFER:                                u64                     => [LOAD_IA32_EFER_ON_EXIT];
    0x2c04       HOST_IA32_PERF_GLOBAL_CTRL:                    u64                     => [LOAD_IA32_PERF_GLOBAL_CTRL_ON_EXIT];
    0x2c06       HOST_IA32_PKRS:                                u64                     => [LOAD_PKRS_ON_EXIT];
    0x2c08       HOST_IA32_FRED_CONFIG:                         u64                     => [LOAD_FRED_ON_EXIT];
    0x2c0a       HOST_IA32_FRED_RSP1:                           u64                     => [LOAD_FRED_ON_EXIT];
    0x2c0c       HOST_IA32_FRED_RSP2:                           u64                     => [LOAD_FRED_ON_EXIT];
    0x2c0e       HOST_IA32_FRED_RSP3:                           u64                     => [LOAD_FRED_ON_EXIT];
    0x2c10       HOST_IA32_FRED_STKLVLS:                        u64                     => [LOAD_FRED_ON_EXIT];
    0x2c12       HOST_IA32_FRED_SSP1:                           u64                     => [LOAD_FRED_ON_EXIT];
    0x2c14       HOST_IA32_FRED_SSP2:                           u64                     => [LOAD_FRED_ON_EXIT];
    0x2c16       HOST_IA32_FRED_SSP3:                           u64                     => [LOAD_FRED_ON_EXIT];
    0x2c1a       HOST_IA32_SPEC_CTRL:                           u64                     => [LOAD_IA32_SPEC_CTRL_ON_EXIT];
    0x4000       PIN_BASED_VM_EXECUTION_CONTROLS:               u32                     => [];
    0x4002       PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: u32                     => [];
    0x4004       EXCEPTION_BITMAP:                              u32                     => [];
    0x4006       PAGE_FAULT_ERROR_CODE_MASK:                    u32                     => [];
    0x4008       PAGE_FAULT_ERROR_CODE_MATCH:                   u32                     => [];
    0x400a       CR3_TARGET_COUNT:                              u32                     => [];
    0x400c       PRIMARY_VM_EXIT_CONTROLS:                      u32                     => [];
    0x400e       VM_EXIT_MSR_STORE_COUNT:                       u32                     => [];
    0x4010       VM_EXIT_MSR_LOAD_COUNT:                        u32                     => [];
    0x4012       VM_ENTRY_CONTROLS:                             u32                     => [];
    0x4014       VM_ENTRY_MSR_LOAD_COUNT:                       u32                     => [];
    0x4016       INJECTED_EVENT_IDENTIFICATION:                 InjectedEvent           => [];
    0x4018       INJECTED_EVENT_ERROR_CODE:                     u32                     => [];
    0x401a       VM_ENTRY_INSTRUCTION_LENGTH:                   u32                     => [];
    0x401c       TPR_THRESHOLD:                                 u32                     => [USE_TPR_SHADOW];
    0x401e       SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS: u32                     => [ACTIVATE_SECONDARY_CONTROLS];
    0x4020       PLE_GAP:                                       u32                     => [PAUSE_LOOP_EXITING];
    0x4022       PLE_WINDOW:                                    u32                     => [PAUSE_LOOP_EXITING];
    0x4024       INSTRUCTION_TIMEOUT_CONTROL:                   u32                     => [INSTRUCTION_TIMEOUT];
    0x4026       SEAM_GUEST_KEYID:                              u32                     => [SEAM_GUEST_PHYSICAL_ADDRESS_WIDTH];
    0x4400       VM_INSTRUCTION_ERROR:                          u32                     => [];
    0x4402       EXIT_REASON:                                   u32                     => [];
    0x4404       EXITING_EVENT_IDENTIFICATION:                  RecordedEvent           => [];
    0x4406       EXITING_EVENT_ERROR_CODE:                      u32                     => [];
    0x4408       ORIGINAL_EVENT_IDENTIFICATION:                 RecordedEvent           => [];
    0x440a       ORIGINAL_EVENT_ERROR_CODE:                     u32                     => [];
    0x440c       VM_EXIT_INSTRUCTION_LENGTH:                    u32                     => [];
    0x440e       VM_EXIT_INSTRUCTION_INFORMATION:               u32                     => [];
    0x4800       GUEST_ES_LIMIT:                                u32                     => [];
    0x4802       GUEST_CS_LIMIT:                                u32                     => [];
    0x4804       GUEST_SS_LIMIT:                                u32                     => [];
    0x4806       GUEST_DS_LIMIT:                                u32                     => [];
    0x4808       GUEST_FS_LIMIT:                                u32                     => [];
    0x480a       GUEST_GS_LIMIT:                                u32                     => [];
    0x480c       GUEST_LDTR_LIMIT:                              u32                     => [];
    0x480e       GUEST_TR_LIMIT:                                u32                     => [];
    0x4810       GUEST_GDTR_LIMIT:                              u32                     => [];
    0x4812       GUEST_IDTR_LIMIT:                              u32                     => [];
    0x4814       GUEST_ES_ACCESS_RIGHTS:                        AccessRights            => [];
    0x4816       GUEST_CS_ACCESS_RIGHTS:                        AccessRights            => [];
    0x4818       GUEST_SS_ACCESS_RIGHTS:                        AccessRights            => [];
    0x481a       GUEST_DS_ACCESS_RIGHTS:                        AccessRights            => [];
    0x481c       GUEST_FS_ACCESS_RIGHTS:                        AccessRights            => [];
    0x481e       GUEST_GS_ACCESS_RIGHTS:                        AccessRights            => [];
    0x4820       GUEST_LDTR_ACCESS_RIGHTS:                      AccessRights            => [];
    0x4822       GUEST_TR_ACCESS_RIGHTS:                        AccessRights            => [];
    0x4824       GUEST_INTERRUPTIBILITY_STATE:                  InterruptibilityState   => [];
    0x4826       GUEST_ACTIVITY_STATE:                          u32                     => [];
    0x4828       GUEST_SMBASE:                                  u32                     => [];
    0x482a       GUEST_IA32_SYSENTER_CS:                        u32                     => [];
    0x482e       VMX_PREEMPTION_TIMER_VALUE:                    u32                     => [ACTIVATE_VMX_PREEMPTION_TIMER];
    0x4c00       HOST_IA32_SYSENTER_CS:                         u32                     => [];
    0x6000       CR0_GUEST_HOST_MASK:                           u64                     => [];
    0x6002       CR4_GUEST_HOST_MASK:                           u64                     => [];
    0x6004       CR0_READ_SHADOW:                               u64                     => [];
    0x6006       CR4_READ_SHADOW:                               u64                     => [];
    0x6008       CR3_TARGET_VALUE_0:                            u64                     => [];
    0x600a       CR3_TARGET_VALUE_1:                            u64                     => [];
    0x600c       CR3_TARGET_VALUE_2:                            u64                     => [];
    0x600e       CR3_TARGET_VALUE_3:                            u64                     => [];
    0x6400       EXIT_QUALIFICATION:                            u64                     => [];
    0x6402       IO_RCX:                                        u64                     => [];
    0x6404       IO_RSI:                                        u64                     => [];
    0x6406       IO_RDI:                                        u64                     => [];
    0x6408       IO_RIP:                                        u64                     => [];
    0x640a       GUEST_LINEAR_ADDRESS:                          u64                     => [];
    0x6800       GUEST_CR0:                                     u64                     => [];
    0x6802       GUEST_CR3:                                     u64                     => [];
    0x6804       GUEST_CR4:                                     u64                     => [];
    0x6806       GUEST_ES_BASE:                                 u64                     => [];
    0x6808       GUEST_CS_BASE:                                 u64                     => [];
    0x680a       GUEST_SS_BASE:                                 u64                     => [];
    0x680c       GUEST_DS_BASE:                                 u64                     => [];
    0x680e       GUEST_FS_BASE:                                 u64                     => [];
    0x6810       GUEST_GS_BASE:                                 u64                     => [];
    0x6812       GUEST_LDTR_BASE:                               u64                     => [];
    0x6814       GUEST_TR_BASE:                                 u64                     => [];
    0x6816       GUEST_GDTR_BASE:                               u64                     => [];
    0x6818       GUEST_IDTR_BASE:                               u64                     => [];
    0x681a       GUEST_DR7:                                     u64                     => [];
    0x681c       GUEST_RSP:                                     u64                     => [];
    0x681e       GUEST_RIP:                                     u64                     => [];
    0x6820       GUEST_RFLAGS:                                  u64                     => [];
    0x6822       GUEST_PENDING_DEBUG_EXCEPTIONS:                PendingDebugExceptions  => [];
    0x6824       GUEST_IA32_SYSENTER_ESP:                       u64                     => [];
    0x6826       GUEST_IA32_SYSENTER_EIP:                       u64                     => [];
    0x6828       GUEST_IA32_S_CET:                              u64                     => [LOAD_CET_STATE_ON_ENTRY];
    0x682a       GUEST_SSP:                                     u64                     => [LOAD_CET_STATE_ON_ENTRY];
    0x682c       GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR:           u64                     => [LOAD_CET_STATE_ON_ENTRY];
    0x6c00       HOST_CR0:                                      u64                     => [];
    0x6c02       HOST_CR3:                                      u64                     => [];
    0x6c04       HOST_CR4:                                      u64                     => [];
    0x6c06       HOST_FS_BASE:                                  u64                     => [];
    0x6c08       HOST_GS_BASE:                                  u64                     => [];
    0x6c0a       HOST_TR_BASE:                                  u64                     => [];
    0x6c0c       HOST_GDTR_BASE:                                u64                     => [];
    0x6c0e       HOST_IDTR_BASE:                                u64                     => [];
    0x6c10       HOST_IA32_SYSENTER_ESP:                        u64                     => [];
    0x6c12       HOST_IA32_SYSENTER_EIP:                        u64                     => [];
    0x6c14       HOST_RSP:                                      u64                     => [];
    0x6c16       HOST_RIP:                                      u64                     => [];
    0x6c18       HOST_IA32_S_CET:                               u64                     => [LOAD_CET_STATE_ON_EXIT];
    0x6c1a       HOST_SSP:                                      u64                     => [LOAD_CET_STATE_ON_EXIT];
    0x6c1c       HOST_IA32_INTERRUPT_SSP_TABLE_ADDR:            u64                     => [LOAD_CET_STATE_ON_EXIT];
}

/// Slot of each even encoding, by [`slot_key`].
pub(crate) static SLOTS: [u16; 1024] = {
    let mut slots = [NO_SLOT; 1024];
    let mut slot = 0;
    while slot < COUNT {
        if let Some(key) = slot_key(FIELDS[slot].encoding) {
            slots[key] = slot as u16;
        }
        slot += 1;
    }
    slots
};

const _: () = {
    let mut slot = 1;
    while slot < COUNT {
        assert!(
            FIELDS[slot - 1].encoding < FIELDS[slot].encoding,
            "the table is in the order of the encodings"
        );
        assert!(slot_key(FIELDS[slot].encoding).is_some(), "every encoding has a slot");
        slot += 1;
    }
};
