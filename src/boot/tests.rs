use super::*;
use std::io::Write as _;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::arch::{cr, efer};
use vmcs12::cpu_state::gpr;

const MIB: u64 = 1 << 20;
const RSDP: u64 = memory_map::place::FIRMWARE;

fn memory(mib: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (mib * MIB) as usize)]).expect("address space")
}

fn image(name: &str, bytes: Vec<u8>) -> Image {
    Image { name: name.into(), bytes: Arc::new(bytes.to_vec()) }
}

fn source(kernel: &Image) -> BootSource<'_> {
    BootSource { kernel, initrd: None, modules: &[], cmdline: "console=ttyS0", processors: 1 }
}

fn problem_of(bytes: Vec<u8>) -> Option<Problem> {
    load(&memory(64), &source(&image("kernel", bytes))).err().map(|error| error.problem)
}

fn u32_at(memory: &GuestMemoryMmap, at: u64) -> u32 {
    memory.read_obj(GuestAddress(at)).expect("RAM")
}

fn u64_at(memory: &GuestMemoryMmap, at: u64) -> u64 {
    memory.read_obj(GuestAddress(at)).expect("RAM")
}

fn string_at(memory: &GuestMemoryMmap, at: u64) -> String {
    let byte = |i| memory.read_obj::<u8>(GuestAddress(at + i)).expect("RAM");
    (0..).map(byte).take_while(|byte| *byte != 0).map(char::from).collect()
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of protocol 2.15 with `payload` bytes, as the header's fields say.
fn bzimage(payload: usize) -> Vec<u8> {
    let mut file = vec![0; 1024 + payload];
    file[0x1f1] = 1;
    put(&mut file, 0x1f4, &(payload as u32 / 16).to_le_bytes());
    put(&mut file, 0x200, &[0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x020fu16.to_le_bytes());
    file[0x211] = 1;
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    file[0x234] = 1;
    put(&mut file, 0x236, &1u16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut file, 0x260, &0x80_0000u32.to_le_bytes());
    put(&mut file, 1024, b"first");
    file
}

/// An executable with one segment of `content` at 2 MiB, and a PVH note if `pvh` names an entry point.
fn elf64(content: &[u8], pvh: Option<u32>) -> Vec<u8> {
    let headers = 64 + 2 * 56;
    let mut note = Vec::new();
    if let Some(entry) = pvh {
        note.extend([4u32, 0, 1].iter().flat_map(|word| word.to_le_bytes()));
        note.extend(b"Any\0");
        note.extend([4u32, 8, 18].iter().flat_map(|word| word.to_le_bytes()));
        note.extend(b"Xen\0");
        note.extend(u64::from(entry).to_le_bytes());
    }
    let mut file = vec![0; headers];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0]);
    put(&mut file, 24, &0xffff_ffff_8020_0010u64.to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 54, &56u16.to_le_bytes());
    put(&mut file, 56, &2u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, virt: u64, phys: u64, size: u64| {
        put(&mut file, at, &kind.to_le_bytes());
        for (i, word) in
            [offset, virt, phys, size, size + if kind == 1 { 0x1000 } else { 0 }, 4].iter().enumerate()
        {
            put(&mut file, at + 8 + 8 * i, &word.to_le_bytes());
        }
    };
    header(64, 1, headers as u64, 0xffff_ffff_8020_0000, 0x20_0000, content.len() as u64);
    header(120, 4, (headers + content.len()) as u64, 0, 0, note.len() as u64);
    file.extend(content);
    file.extend(note);
    file
}

fn elf32(content: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 52 + 32];
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0]);
    put(&mut file, 24, &0x20_0020u32.to_le_bytes());
    put(&mut file, 28, &52u32.to_le_bytes());
    put(&mut file, 42, &32u16.to_le_bytes());
    put(&mut file, 44, &1u16.to_le_bytes());
    let length = content.len() as u32;
    for (i, word) in [1, 84, 0x20_0000, 0x20_0000, length, length + 64, 7, 4096].iter().enumerate() {
        put(&mut file, 52 + 4 * i, &u32::to_le_bytes(*word));
    }
    file.extend(content);
    file
}

fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum].iter().chain(addresses).flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn bzimage_starts_in_long_mode_with_the_zero_page() {
    let memory = memory(64);
    let kernel = image("bzImage", bzimage(4096));
    let initrd = image("initrd", b"ramdisk".to_vec());
    let source = BootSource { initrd: Some(&initrd), ..source(&kernel) };
    let state = load(&memory, &source).expect("boots");
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(string_at(&memory, 0x100_0000), "first");
    assert_eq!(state.efer, efer::LME | efer::LMA);
    assert_eq!(state.cr0 & (cr::cr0::PG | cr::cr0::PE), cr::cr0::PG | cr::cr0::PE);
    assert_eq!(state.segment(SegmentRegister::Cs).selector, 0x10);
    let zero_page = state.gpr[gpr::RSI];
    assert_eq!(u64_at(&memory, zero_page + 0x70), RSDP);
    assert_eq!(u32_at(&memory, zero_page + 0x202).to_le_bytes(), *b"HdrS");
    assert_eq!(string_at(&memory, u64::from(u32_at(&memory, zero_page + 0x228))), "console=ttyS0");
    assert_eq!(u64::from(u32_at(&memory, zero_page + 0x218)), 64 * MIB - 4096);
    assert_eq!(u32_at(&memory, zero_page + 0x21c), 7);
    assert_eq!(string_at(&memory, 64 * MIB - 4096), "ramdisk");
    let entries = memory.read_obj::<u8>(GuestAddress(zero_page + 0x1e8)).expect("RAM");
    assert_eq!(entries, 4);
    assert_eq!(u64_at(&memory, zero_page + 0x2d0 + 8), 0x9_fc00);
}

/// A bzImage whose compressed part is this.
fn bzimage_around(compressed: &[u8]) -> Vec<u8> {
    let mut file = bzimage(8192);
    put(&mut file, 0x248, &0x300u32.to_le_bytes());
    put(&mut file, 0x24c, &(compressed.len() as u32).to_le_bytes());
    put(&mut file, 1024 + 0x300, compressed);
    file
}

#[test]
fn the_executable_inside_a_bzimage_is_started() {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(&elf64(b"text", None)).expect("memory");
    let compressed = writer.finish().expect("memory");
    let memory = memory(64);
    let state = load(&memory, &source(&image("bzImage", bzimage_around(&compressed)))).expect("boots");
    assert_eq!((state.rip, state.gpr[gpr::RSI]), (0x20_0010, memory_map::place::BOOT_INFO));
    assert_eq!(string_at(&memory, 0x20_0000), "text");
    assert!(matches!(problem_of(bzimage_around(&compressed[..40])), Some(Problem::Corrupt(_))));
}

#[test]
fn the_identity_map_covers_four_gib() {
    let memory = memory(64);
    let state = load(&memory, &source(&image("bzImage", bzimage(4096)))).expect("boots");
    for address in [0, 0x100_0200, 0xfee0_0000u64] {
        let entry =
            |table: u64, shift: u32| u64_at(&memory, (table & !0xfff) + (address >> shift & 0x1ff) * 8);
        let leaf = entry(entry(entry(state.cr3, 39), 30), 21);
        assert_eq!(leaf & !0xfff, address & !0x1f_ffff);
        assert_eq!(leaf & 0x83, 0x83);
    }
}

#[test]
fn bzimage_problems() {
    let spoil = |at: usize, bytes: &[u8]| {
        let mut file = bzimage(4096);
        put(&mut file, at, bytes);
        problem_of(file)
    };
    assert!(matches!(spoil(0x206, &[0, 2]), Some(Problem::Unsupported { .. })), "old protocol");
    assert!(matches!(spoil(0x236, &[0]), Some(Problem::Unsupported { .. })), "32-bit kernel");
    assert!(matches!(spoil(0x1f4, &[1, 1]), Some(Problem::Truncated { .. })), "longer than the file");
    assert!(matches!(spoil(0x1f1, &[200]), Some(Problem::Truncated { .. })), "setup longer than the file");
    assert!(matches!(spoil(0x230, &[0, 0, 0]), Some(Problem::Corrupt(_))), "no alignment");
    assert!(matches!(spoil(0x260, &[0, 0, 0, 0x10]), Some(Problem::TooLarge { .. })), "larger than RAM");
    assert!(matches!(spoil(0x258, &[0xff; 8]), Some(Problem::Corrupt(_) | Problem::TooLarge { .. })));
}

#[test]
fn a_command_line_has_a_limit() {
    let kernel = image("bzImage", bzimage(4096));
    let long = "x".repeat(2048);
    let error = load(&memory(64), &BootSource { cmdline: &long, ..source(&kernel) }).expect_err("too long");
    assert_eq!(error.problem, Problem::CommandLine { length: 2048, limit: 2047 });
    let error = load(&memory(64), &BootSource { cmdline: "a\0b", ..source(&kernel) }).expect_err("NUL");
    assert_eq!(error.problem, Problem::Nul);
}

#[test]
fn an_initrd_that_does_not_fit_is_named() {
    let kernel = image("bzImage", bzimage(4096));
    let initrd = image("big.img", vec![1; 50 << 20]);
    let error =
        load(&memory(64), &BootSource { initrd: Some(&initrd), ..source(&kernel) }).expect_err("too large");
    assert_eq!(error.file, "big.img");
    assert!(error.to_string().contains("--memory"), "{error}");
}

#[test]
fn pvh_starts_in_protected_mode_with_start_info() {
    let memory = memory(64);
    let kernel = image("vmlinux", elf64(b"text", Some(0x20_0040)));
    let initrd = image("initrd", vec![7; 5000]);
    let modules = [Module { image: image("m", b"module".to_vec()), string: "m arg".into() }];
    let source = BootSource { initrd: Some(&initrd), modules: &modules, ..source(&kernel) };
    let state = load(&memory, &source).expect("boots");
    assert_eq!((state.rip, state.cr0, state.efer), (0x20_0040, 0x11, 0));
    assert_eq!(string_at(&memory, 0x20_0000), "text");
    let info = state.gpr[gpr::RBX];
    assert_eq!(u32_at(&memory, info), 0x336e_c578);
    assert_eq!(u32_at(&memory, info + 12), 2);
    let list = u64_at(&memory, info + 16);
    assert_eq!((u64_at(&memory, list), u64_at(&memory, list + 8)), (64 * MIB - 8192, 5000));
    assert_eq!(string_at(&memory, u64_at(&memory, list + 32)), "module");
    assert_eq!(string_at(&memory, u64_at(&memory, list + 32 + 16)), "m arg");
    assert_eq!(string_at(&memory, u64_at(&memory, info + 24)), "console=ttyS0");
    assert_eq!(u64_at(&memory, info + 32), RSDP);
    assert_eq!(u32_at(&memory, info + 48), 4);
    let map = u64_at(&memory, info + 40);
    assert_eq!((u64_at(&memory, map), u64_at(&memory, map + 8)), (0, 0x9_fc00));
}

#[test]
fn elf_problems() {
    assert!(matches!(problem_of(elf64(b"text", None)), Some(Problem::Unsupported { .. })), "no note");
    let spoil = |at: usize, bytes: &[u8]| {
        let mut file = elf64(b"text", Some(0x20_0040));
        put(&mut file, at, bytes);
        problem_of(file)
    };
    assert!(matches!(spoil(18, &[40]), Some(Problem::Unsupported { .. })), "another machine");
    assert!(matches!(spoil(54, &[1]), Some(Problem::Corrupt(_))), "small program headers");
    assert!(matches!(spoil(56, &[0xff, 0xff]), Some(Problem::Truncated { .. })), "many program headers");
    assert!(matches!(spoil(72, &[0xff; 8]), Some(Problem::Truncated { .. })), "segment beyond the file");
    assert!(matches!(spoil(88, &[0xff; 8]), Some(Problem::TooLarge { .. })), "segment beyond RAM");
    assert!(matches!(spoil(88, &[0, 0x10, 0, 0]), Some(Problem::Unsupported { .. })), "segment below 1 MiB");
    assert!(matches!(spoil(104, &[1, 0]), Some(Problem::Corrupt(_))), "file size above memory size");
}

#[test]
fn multiboot_elf_gets_modules_and_information() {
    let memory = memory(64);
    let mut content = vec![0; 64];
    put(&mut content, 16, &multiboot_header(3, &[]));
    let kernel = image("test.flat", elf32(&content));
    let module = |text: &str| Module { image: image("m", vec![9; 4097]), string: text.into() };
    let modules = [module("env a=1"), module("")];
    let state = load(&memory, &BootSource { modules: &modules, ..source(&kernel) }).expect("boots");
    assert_eq!((state.rip, state.gpr[gpr::RAX]), (0x20_0020, 0x2bad_b002));
    assert_eq!(state.segment(SegmentRegister::Ds).selector, 0x18);
    let info = state.gpr[gpr::RBX];
    assert_eq!(u32_at(&memory, info) & 0x24d, 0x24d);
    assert_eq!((u32_at(&memory, info + 4), u32_at(&memory, info + 8)), (639, 63 * 1024));
    assert_eq!(string_at(&memory, u64::from(u32_at(&memory, info + 16))), "console=ttyS0");
    assert_eq!(u32_at(&memory, info + 20), 2);
    let list = u64::from(u32_at(&memory, info + 24));
    assert_eq!((u32_at(&memory, list), u32_at(&memory, list + 4)), (0x20_1000, 0x20_2001));
    assert_eq!(string_at(&memory, u64::from(u32_at(&memory, list + 8))), "env a=1");
    assert_eq!(u32_at(&memory, list + 16), 0x20_3000);
    assert_eq!(u32_at(&memory, info + 44), 4 * 24);
    let map = u64::from(u32_at(&memory, info + 48));
    assert_eq!((u32_at(&memory, map), u64_at(&memory, map + 12)), (20, 0x9_fc00));
}

#[test]
fn multiboot_by_addresses() {
    let memory = memory(64);
    let addresses = [0x10_0010, 0x10_0000, 0x10_0100, 0x10_4000, 0x10_0030];
    let mut file = vec![0; 0x120];
    put(&mut file, 0x20, b"image");
    put(&mut file, 0x30, &multiboot_header(1 << 16, &addresses));
    let state = load(&memory, &source(&image("flat", file))).expect("boots");
    assert_eq!(state.rip, 0x10_0030);
    assert_eq!(string_at(&memory, 0x10_0000), "image");
}

#[test]
fn multiboot_problems() {
    let with = |flags: u32, addresses: &[u32]| {
        let mut file = multiboot_header(flags, addresses);
        file.resize(256, 0);
        problem_of(file)
    };
    assert!(matches!(with(8, &[]), Some(Problem::Unsupported { .. })), "an unknown requirement");
    assert!(matches!(with(4, &[]), Some(Problem::Unsupported { .. })), "a video mode");
    assert!(matches!(with(0, &[]), Some(Problem::Corrupt(_))), "neither addresses nor ELF");
    assert!(
        matches!(with(1 << 16, &[0, 0x10_0000, 0, 0, 0]), Some(Problem::Corrupt(_))),
        "header before load"
    );
    assert!(
        matches!(with(1 << 16, &[0x10_0000, 0x10_0000, 1, 0, 0]), Some(Problem::Corrupt(_))),
        "end before start"
    );
    assert!(matches!(
        with(1 << 16, &[0x10_0000, 0x10_0000, 0x20_0000, 0, 0]),
        Some(Problem::Truncated { .. })
    ));
    assert!(matches!(with(1 << 16, &[0x10_0000, 0x10_0000, 0, u32::MAX, 0]), Some(Problem::TooLarge { .. })));
}

#[test]
fn what_is_no_kernel_says_what_would_be() {
    for bytes in [vec![], vec![0; 10], vec![0xff; 100_000], b"#!/bin/sh\n".to_vec()] {
        assert_eq!(problem_of(bytes), Some(Problem::NotAKernel));
    }
    let error = load(&memory(64), &source(&image("notes.txt", vec![]))).expect_err("no kernel");
    assert!(error.to_string().starts_with("notes.txt: not a kernel"), "{error}");
}

#[test]
fn little_memory_is_an_error() {
    for (kib, bytes) in
        [(4, bzimage(16)), (960, elf64(b"text", Some(1))), (1024, elf32(&[0; 64])), (2048, bzimage(16))]
    {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), kib << 10)]).expect("address space");
        assert!(load(&memory, &source(&image("kernel", bytes))).is_err(), "{kib} KiB");
    }
}

/// A linear congruential generator: the same files in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

#[test]
fn spoilt_files_never_panic() {
    let mut content = vec![0; 64];
    put(&mut content, 0, &multiboot_header(1, &[]));
    let mut by_addresses = multiboot_header(1 << 16, &[0x10_0000, 0x10_0000, 0, 0x10_4000, 0x10_0030]);
    by_addresses.resize(256, 0x90);
    let files = [bzimage(256), elf64(b"text", Some(0x20_0040)), elf32(&content), by_addresses];
    let memory = memory(40);
    let mut random = Random(1);
    for _ in 0..20_000 {
        let mut bytes = files[random.below(files.len())].clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = [0, 0xff, 0x80, 1, random.below(256) as u8][random.below(5)];
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        let _ = load(&memory, &source(&image("kernel", bytes)));
    }
}
