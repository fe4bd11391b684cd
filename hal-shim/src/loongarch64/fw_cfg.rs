//! QEMU's description of the machine: its `fw_cfg` device, which is only read.
//!
//! A kernel that is started with `-kernel` and no firmware learns here how much memory and how many
//! cores there are. Older versions of QEMU pass the kernel's command line in no way; so it is a
//! file here: `-fw_cfg name=opt/trapline/words,string="…"`.

use alloc::vec::Vec;
use core::ptr::with_exposed_provenance_mut;

use super::uncached;

/// The device's registers.
const DATA: usize = uncached(0x1e02_0000);
const SELECTOR: usize = DATA + 8;

const SIGNATURE: u16 = 0x0;
const CORES: u16 = 0x5;
const DIRECTORY: u16 = 0x19;

/// The selected item: a file, or one with a fixed key.
struct Item;

impl Item {
    /// Selects an item, from its beginning, in place of the one that was selected.
    fn new(key: u16) -> Self {
        let selector = with_exposed_provenance_mut::<u16>(SELECTOR);
        // SAFETY: the machine has the device at this address. The selector is big-endian.
        unsafe { selector.write_volatile(key.to_be()) };
        Self
    }

    fn read<const N: usize>(&mut self) -> [u8; N] {
        let data = with_exposed_provenance_mut::<u8>(DATA);
        // SAFETY: the machine has the device at this address; each read returns the next byte.
        core::array::from_fn(|_| unsafe { data.read_volatile() })
    }

    /// Selects the file `name`. Returns its size too.
    fn file(name: &str) -> Option<(Self, usize)> {
        let mut directory = Self::new(DIRECTORY);
        let files = u32::from_be_bytes(directory.read());
        for _ in 0..files {
            let size = u32::from_be_bytes(directory.read());
            let key = u16::from_be_bytes(directory.read());
            let _: [u8; 2] = directory.read();
            let found: [u8; 56] = directory.read();
            if found.split(|&byte| byte == 0).next() == Some(name.as_bytes()) {
                return Some((Self::new(key), size as usize));
            }
        }
        None
    }
}

/// Whether the device is there.
pub(super) fn is_there() -> bool {
    &Item::new(SIGNATURE).read() == b"QEMU"
}

pub(super) fn cores() -> usize {
    u16::from_le_bytes(Item::new(CORES).read()).into()
}

/// The end of the memory region that `address` is in.
pub(super) fn end_of_memory(address: usize) -> Option<usize> {
    /// The size of an entry: address, size, kind, and a word that isn't used.
    const ENTRY: usize = 8 + 8 + 4 + 4;
    /// The kind of memory.
    const MEMORY: u32 = 1;
    let (mut file, size) = Item::file("etc/memmap")?;
    (0..size / ENTRY).find_map(|_| {
        let start = u64::from_le_bytes(file.read()) as usize;
        let size = u64::from_le_bytes(file.read()) as usize;
        let what = u32::from_le_bytes(file.read());
        let _: [u8; 4] = file.read();
        let range = start..start.saturating_add(size);
        (what == MEMORY && range.contains(&address)).then_some(range.end)
    })
}

/// The program's command line.
pub(super) fn words() -> Vec<u8> {
    match Item::file("opt/trapline/words") {
        Some((mut file, size)) => (0..size).map(|_| file.read::<1>()[0]).collect(),
        None => Vec::new(),
    }
}
