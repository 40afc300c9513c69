//! Multiboot kernels of a few instructions.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

const LOADED_AT: u32 = 0x10_0000;
const MAGIC: u32 = 0x1bad_b002;
/// The header has load addresses: the file need not be ELF.
const HAS_ADDRESSES: u32 = 1 << 16;
const HEADER: u32 = 32;
const STACK: u32 = LOADED_AT + 0x8000;

mod port {
    pub const SERIAL: u32 = 0x3f8;
    pub const DEBUG_EXIT: u32 = 0xf4;
    pub const KEYBOARD_COMMAND: u32 = 0x64;
    pub const PM1A_CONTROL: u32 = 0x604;
}

/// SLP_EN and the sleep type of S5. ACPI Specification, "PM1 Control Registers".
const SOFT_OFF: u32 = 1 << 13 | 5 << 10;
/// The keyboard controller's command to pulse the reset line.
const PULSE_RESET: u32 = 0xfe;

fn kernel(body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let entry = LOADED_AT + HEADER;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(HAS_ADDRESSES);
    // magic, flags, checksum, header, load, load end (the file's), BSS end (none), entry
    let header = [MAGIC, HAS_ADDRESSES, checksum, LOADED_AT, LOADED_AT, 0, 0, entry];
    let assemble = || {
        let mut a = CodeAssembler::new(32)?;
        a.mov(esp, STACK)?;
        body(&mut a)?;
        a.assemble(u64::from(entry))
    };
    let code = assemble().expect("the kernel can be assembled");
    header.into_iter().flat_map(u32::to_le_bytes).chain(code).collect()
}

fn print(a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    a.mov(edx, port::SERIAL)?;
    text.bytes().try_for_each(|byte| {
        a.mov(al, u32::from(byte))?;
        a.out(dx, al)
    })
}

fn loop_for_ever(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.jmp(again)
}

fn power_off(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, port::PM1A_CONTROL)?;
    a.mov(eax, SOFT_OFF)?;
    a.out(dx, ax)?;
    loop_for_ever(a)
}

pub fn powering_off() -> Vec<u8> {
    kernel(power_off)
}

pub fn printing(text: &str) -> Vec<u8> {
    kernel(|a| print(a, text).and_then(|()| power_off(a)))
}

pub fn printing_then_looping(text: &str) -> Vec<u8> {
    kernel(|a| print(a, text).and_then(|()| loop_for_ever(a)))
}

pub fn printing_for_ever(text: &str) -> Vec<u8> {
    kernel(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        print(a, text)?;
        a.jmp(again)
    })
}

pub fn looping() -> Vec<u8> {
    kernel(loop_for_ever)
}

pub fn resetting() -> Vec<u8> {
    kernel(|a| {
        a.mov(al, PULSE_RESET)?;
        a.out(port::KEYBOARD_COMMAND, al)?;
        loop_for_ever(a)
    })
}

pub fn halting() -> Vec<u8> {
    kernel(|a| {
        a.cli()?;
        a.hlt()
    })
}

pub fn exiting_with(value: u32) -> Vec<u8> {
    kernel(|a| {
        a.mov(eax, value)?;
        a.out(port::DEBUG_EXIT, eax)?;
        loop_for_ever(a)
    })
}

/// An exception with an empty IDT.
pub fn triple_faulting() -> Vec<u8> {
    kernel(|a| {
        no_idt(a)?;
        a.ud2()
    })
}

/// VMLAUNCH outside VMX operation: #UD, and nobody handles it.
pub fn launching_without_vmxon() -> Vec<u8> {
    kernel(|a| {
        no_idt(a)?;
        a.vmlaunch()
    })
}

fn no_idt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(0)?;
    a.push(0)?;
    a.lidt(ptr(esp))
}
