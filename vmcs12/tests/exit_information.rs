//! Exit qualifications and instruction information: SDM Vol. 3, "Information for VM Exits".

use vmcs12::exit::instruction_info::{
    GdtrIdtrInstruction, InstructionInformation, LdtrTrInstruction, MemoryOperand, Size,
};
use vmcs12::exit::qualification::{
    ControlRegisterAccess, ControlRegisterAccessKind, DebugRegisterAccess, EptViolation, IoInstruction,
    TaskSwitch, task_switch_source,
};
use vmcs12::exit::{ENTRY_FAILURE, Reason};

/// `[rbx + rcx * 4]` with FS.
const OPERAND: MemoryOperand =
    MemoryOperand { segment: 4, base: Some(3), index: Some((1, 2)), address_size: Size::Bits64 };

#[test]
fn a_memory_operand_survives() {
    let without = MemoryOperand { base: None, index: None, address_size: Size::Bits32, ..OPERAND };
    for operand in [OPERAND, without] {
        assert_eq!(InstructionInformation::default().with_memory(operand).memory(), operand);
    }
}

#[test]
fn a_memory_operand_has_the_manuals_bits() {
    let expected = 2 | 2 << 7 | 4 << 15 | 1 << 18 | 3 << 23;
    assert_eq!(InstructionInformation::default().with_memory(OPERAND).0, expected);
    assert_eq!(InstructionInformation::invalidation(9, OPERAND).0, expected | 9 << 28);
    let lidt = InstructionInformation::gdtr_idtr(GdtrIdtrInstruction::Lidt, Size::Bits32, OPERAND);
    assert_eq!(lidt.0, expected | 1 << 11 | 3 << 28);
}

#[test]
fn register_operands_have_the_manuals_bits() {
    assert_eq!(InstructionInformation::random(8, Size::Bits64).0, 8 << 3 | 2 << 11);
    let ltr = InstructionInformation::ldtr_tr(LdtrTrInstruction::Ltr).with_register(2);
    assert_eq!(ltr.0, 2 << 3 | 1 << 10 | 3 << 28);
    assert_eq!(InstructionInformation::string_io(Size::Bits16, 3).0, 3 << 15);
}

#[test]
fn qualifications_have_the_manuals_bits() {
    let mov_to_cr3 = ControlRegisterAccess::default()
        .with(ControlRegisterAccess::REGISTER, 3)
        .with(ControlRegisterAccess::KIND, ControlRegisterAccessKind::MovToCr)
        .with(ControlRegisterAccess::GPR, 12);
    assert_eq!(mov_to_cr3.0, 0xc03);
    let mov_from_dr7 = DebugRegisterAccess::default()
        .with(DebugRegisterAccess::REGISTER, 7)
        .with(DebugRegisterAccess::FROM_DR, true)
        .with(DebugRegisterAccess::GPR, 1);
    assert_eq!(mov_from_dr7.0, 0x117);
    let rep_insb = IoInstruction::default()
        .with(IoInstruction::IN, true)
        .with(IoInstruction::STRING, true)
        .with(IoInstruction::REP, true)
        .with(IoInstruction::PORT, 0x3f8);
    assert_eq!(rep_insb.0, 0x03f8_0038);
    let write =
        EptViolation::default().with(EptViolation::DATA_WRITE, true).with(EptViolation::TRANSLATED, true);
    assert_eq!(write.0, 0x102);
    let gate = TaskSwitch::default()
        .with(TaskSwitch::SELECTOR, 0x28)
        .with(TaskSwitch::SOURCE, task_switch_source::TASK_GATE_IN_IDT);
    assert_eq!(gate.0, 0xc000_0028);
}

#[test]
fn reasons_keep_their_numbers() {
    assert!(Reason::ALL.iter().all(|&reason| Reason::from_number(reason as u16) == Some(reason)));
    assert_eq!(Reason::EptViolation as u16, 48);
    assert_eq!(Reason::from_number(35), None);
    assert_eq!(ENTRY_FAILURE, 0x8000_0000);
}
