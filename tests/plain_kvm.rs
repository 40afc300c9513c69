//! `testudo run --processor kvm --nested off`, from files to exit status. Skipped, loudly, where there is no /dev/kvm.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Output};

use iced_x86::code_asm::*;

type Assembled = Result<(), IcedError>;

/// Writes `text` to the serial port, then `value` to the debug-exit port.
fn say(a: &mut CodeAssembler, text: &str, value: u32) -> Assembled {
    a.mov(edx, 0x3f8)?;
    for byte in text.bytes() {
        a.mov(eax, u32::from(byte))?;
        a.out(dx, al)?;
    }
    a.mov(eax, value)?;
    a.out(0xf4, al)
}

fn assemble(bits: u32, at: u64, build: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).expect("a bitness");
    build(&mut assembler).expect("the operands exist");
    assembler.assemble(at).expect("the code is encodable")
}

/// A multiboot 1 kernel with its addresses in the header. Multiboot Specification, "OS image format".
fn multiboot(code: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const HAS_ADDRESSES: u32 = 1 << 16;
    const LOAD: u32 = 0x10_0000;
    const ENTRY: u32 = LOAD + 32;
    let checksum = 0_u32.wrapping_sub(MAGIC + HAS_ADDRESSES);
    let header = [MAGIC, HAS_ADDRESSES, checksum, LOAD, LOAD, 0, 0, ENTRY];
    let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.extend(assemble(32, ENTRY.into(), code));
    file
}

/// A bzImage of one setup sector. Linux, "The Linux/x86 Boot Protocol".
fn bzimage(code: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Vec<u8> {
    const KERNEL: usize = 2 * 512;
    const ENTRY: usize = 0x200;
    const LOAD: u64 = 0x20_0000;
    let mut file = vec![0; KERNEL + ENTRY];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup sectors
    put(0x200, &[0xeb, 0x6a]); // the header ends at 26CH
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes()); // protocol 2.15
    put(0x211, &[1]); // loaded high
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // highest address of the initial RAM disk
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel alignment
    put(0x236, &1_u16.to_le_bytes()); // 64-bit entry point
    put(0x238, &2047_u32.to_le_bytes()); // longest command line
    put(0x258, &LOAD.to_le_bytes()); // preferred address
    put(0x260, &0x1_0000_u32.to_le_bytes()); // memory that it uses at first
    file.extend(assemble(64, LOAD + ENTRY as u64, code));
    file
}

struct Run {
    output: Output,
}

impl Run {
    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }
    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
    fn status(&self) -> Option<i32> {
        self.output.status.code()
    }
}

/// Runs a kernel, or says why not.
fn run(test: &str, kernel: &[u8], more: &[&str]) -> Option<Run> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        // Not eprintln!, which the test harness keeps to itself.
        let _ = writeln!(io::stderr(), "SKIPPED {test}: /dev/kvm: {error}");
        return None;
    }
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.kernel"));
    fs::write(&file, kernel).expect("the target directory is writable");
    let output = Command::new(env!("CARGO_BIN_EXE_testudo"))
        .args(["run", "--processor", "kvm", "--memory", "64M", "--timeout", "60s"])
        .args(more)
        .arg("--kernel")
        .arg(&file)
        .output()
        .expect("the command starts");
    Some(Run { output })
}

#[test]
fn a_multiboot_kernel_prints_and_gives_its_exit_status() {
    let kernel = multiboot(|a| {
        let mut bad = a.create_label();
        a.cmp(eax, 0x2bad_b002)?; // what a multiboot loader leaves in EAX
        a.jne(bad)?;
        say(a, "multiboot\n", 3)?;
        a.set_label(&mut bad)?;
        a.ud2()
    });
    let name = "a_multiboot_kernel_prints_and_gives_its_exit_status";
    let Some(run) = run(name, &kernel, &["--nested", "off"]) else { return };
    assert_eq!((run.stdout().as_str(), run.status()), ("multiboot\n", Some(7)), "{}", run.stderr());
}

#[test]
fn a_bzimage_starts_in_64_bit_mode_with_its_command_line() {
    let kernel = bzimage(|a| {
        const CMD_LINE_PTR: i32 = 0x228;
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.mov(ebx, dword_ptr(rsi + CMD_LINE_PTR))?;
        a.mov(edx, 0x3f8)?;
        a.set_label(&mut again)?;
        a.mov(al, byte_ptr(rbx))?;
        a.inc(rbx)?;
        a.test(al, al)?;
        a.je(done)?;
        a.out(dx, al)?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        a.mov(edx, 0x604)?; // PM1 control: soft off
        a.mov(eax, 5 << 10 | 1 << 13)?;
        a.out(dx, ax)
    });
    let name = "a_bzimage_starts_in_64_bit_mode_with_its_command_line";
    let options = ["--nested", "off", "--cmdline", "hello from the command line"];
    let Some(run) = run(name, &kernel, &options) else { return };
    let expected = ("hello from the command line", Some(0));
    assert_eq!((run.stdout().as_str(), run.status()), expected, "{}", run.stderr());
}

#[test]
fn a_triple_fault_shows_the_last_exits() {
    let kernel = multiboot(|a| {
        a.out(0x80, al)?;
        a.ud2()
    });
    let name = "a_triple_fault_shows_the_last_exits";
    let Some(run) = run(name, &kernel, &["--nested", "off"]) else { return };
    assert_eq!(run.status(), Some(6));
    assert!(run.stderr().contains("OUT 0x0080"), "{}", run.stderr());
}

#[test]
fn a_guest_that_is_to_see_vmx_is_refused_with_the_remedy() {
    let kernel = multiboot(|a| say(a, "", 0));
    let name = "a_guest_that_is_to_see_vmx_is_refused_with_the_remedy";
    let Some(run) = run(name, &kernel, &["--nested", "on"]) else { return };
    assert_eq!(run.status(), Some(2));
    assert!(run.stderr().contains("--nested off"), "{}", run.stderr());
}
