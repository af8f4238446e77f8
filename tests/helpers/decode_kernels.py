"""Kernels of passes over many answers on the host: quantised multiplications and attention, turns over trees of drafts,
and the prompts' kernels."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from cuda_steps import HERE, host_text
from metal_host_kernels import compiler

SHARED_BYTES, THREADS, TILE, ROWS = 227 * 1024, 512, 128, 64
_ENTRIES = """
#include "cuda_host.h"
#define __shared__ static
#define __grid_constant__
TEXT
using namespace specdec;
namespace {
// The blocks of a grid, one after the other: last to first, if `backwards`.
void run_each(int count, int lines, int layers, int threads, void (*body)(), bool backwards = false) {
  host::lines = lines, host::layers = layers;
  const int all = count * lines * layers;
  for (int block = 0; block < all; ++block) {
    host::first_block = backwards ? all - 1 - block : block;
    host::run(1, threads, SHARED, false, body);
  }
  host::first_block = 0, host::lines = host::layers = 1;
}
const long long* values;
template <class T>
T* place(int which) { return reinterpret_cast<T*>(values[which]); }
}  // namespace
extern "C" {
// A kernel of a turn over a tree, with the arguments of its launch.
void run_tree(int which, const long long* all, int count, int lines, int backwards) {
  values = all;
  static constexpr void (*bodies[])() = {
      [] { tree_forget(place<int>(0)); },
      [] { tree_begin(place<int>(0), place<PromptRow>(1), values[2], place<half_t>(3), values[4]); },
      [] { tree_look(place<int>(0), place<float>(1), values[2], place<float>(3), place<uint2>(4)); },
      [] { tree_end(place<int>(0), place<float>(1), place<uint2>(2), values[3], place<float>(4)); },
      [] { decode_look_parts(place<float>(0), values[1], place<float>(2)); },
  };
  run_each(count, lines, 1, THREADS, bodies[which], backwards);
}
}
namespace {
struct Given {
  int form, band, all_rows;
  Matrix m;
  const char *data, *words, *groups;
  const float* scales;
  float* sums;
  ManyRows rows() const { return {words, groups, all_rows}; }
  char* room() const { return host::shared[host::self / host::threads_of_block]; }
} given;
template <int F, int BAND, int GROUPS, int DEPTH, int SLOTS>
void share() {
  multiply_share<F, BAND, GROUPS, DEPTH, SLOTS>(given.m, blockIdx.x, given.data, given.rows(), given.scales, given.sums,
                                                given.room());
}
struct Attention {
  const float* parts;
  const PromptRow* about;
  const PromptTile* tiles;
  const float *angles, *bias, *norms;
  float *sums, *queries, *splits, *scales;
  unsigned* words;
  Group* groups;
  const unsigned char* paths;
  long long rows, all_rows, columns, layer, window, split_count, mixes, chains;
} attention;
}  // namespace
extern "C" {
void run_shares(Given* all, int backwards) {
  given = *all;
  const int groups = given.band == 8 ? DECODE_GROUPS_8 : DECODE_GROUPS_16;
  host::run(given.m.blocks, groups * 64, SHARED, backwards, [] {
    with_form(given.form, [](auto chosen) {
      constexpr int F = decltype(chosen)::value;
      if (given.band == 8) share<F, 8, DECODE_GROUPS_8, DECODE_DEPTH_8, DECODE_SLOTS_8>();
      if (given.band == 16) share<F, 16, DECODE_GROUPS_16, DECODE_DEPTH_16, DECODE_SLOTS_16>();
    });
  });
}
void run_tiles(Given* all) {
  given = *all;
  host::run(given.m.tiles, 256, SHARED, false, [] {
    with_form(given.form, [](auto chosen) {
      const Given& all = given;
      multiply_many<decltype(chosen)::value, 64>(all.m, blockIdx.x, all.data, all.rows(), all.scales, all.sums,
                                                 all.m.tiles * TILE, all.room());
    });
  });
}
void weights_of(Given* all) {
  with_form(all->form, [all](auto chosen) {
    const int width = all->m.steps * 32;
    for (int o = 0; o < all->m.tiles * TILE; ++o) {
      for (int i = 0; i < width; ++i) {
        all->sums[(size_t)o * width + i] = quant_weight<decltype(chosen)::value>(all->m, all->data, o, i);
      }
    }
  });
}
int slot_of(Given* all, int block, int tile) { return all->m.slot(block, tile); }
int block_of(Given* all, int unit) { return all->m.block_of(unit); }
// Attention of single rows, of the sums in parts.
void run_attention(Attention* all, int lines) {
  attention = *all;
  if (all->chains) {
    run_each(int(all->rows), (HEADS + 2 * KV_HEADS + 7) / 8, 1, 256, [] {
      const Attention& a = attention;
      decode_turn(a.parts, a.all_rows, a.about, a.angles, a.bias, a.norms, a.layer, a.queries);
    });
  }
  run_each(int(all->rows), lines, int(all->split_count), THREADS, [] {
    const Attention& a = attention;
    const float* queries = a.chains ? a.queries : nullptr;
    decode_attend(a.parts, a.all_rows, a.about, a.angles, a.bias, a.norms, a.layer, queries, a.paths, a.window,
                  a.split_count, a.splits, a.mixes ? a.words : nullptr, a.groups, a.scales);
  });
}
// The same by the kernels for prompts.
void run_prompt_attention(Attention* all) {
  attention = *all;
  const Attention& a = attention;
  for (int row = 0; row < a.rows; ++row) {
    float* to = a.sums + row * a.columns;
    auto finish = [&](int which, int column, int i) {
      *reinterpret_cast<float4*>(to + column + i) = parts4(which, a.parts, int(a.all_rows), row, i);
    };
    for (int i = 0; i < HEADS * SIZE; i += 4) finish(0, 0, i);
    for (int i = 0; i < KV_HEADS * SIZE; i += 4) finish(1, TURN_KEYS, i), finish(2, TURN_VALUES, i);
  }
  run_each(int(a.rows), (HEADS + 2 * KV_HEADS + 7) / 8, 1, 256, [] {
    const Attention& a = attention;
    prompt_turn(a.sums, a.columns, a.about, a.angles, a.bias, a.norms, a.layer, a.queries);
  });
  run_each(int(a.rows), HEADS, int(a.split_count), 256, [] {
    const Attention& a = attention;
    prompt_attend(a.queries, a.tiles, a.layer, a.window, a.split_count, a.splits);
  });
  run_each(int(a.rows * (MIXED_PAD / 4) + THREADS - 1) / THREADS, 1, 1, THREADS, [] {
    const Attention& a = attention;
    prompt_mix(a.splits, a.about, a.split_count, a.rows, a.words, a.groups, a.all_rows, a.scales);
  });
}
int slots() {
  int count = 0;
  for (int which = 0; which < 3; ++which) count += segment_at(which).tiles + segment_at(which).blocks;
  return count;
}
int columns() { return TURN_VALUES + segment_at(2).tiles * TILE; }
}
"""
TREE_KERNELS = ("tree_forget", "tree_begin", "tree_look", "tree_end", "decode_look")  # by their numbers in `run_tree`


class Given(ctypes.Structure):
    """Of a multiplication."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("form", "band", "all_rows", "tiles", "steps", "begin", "blocks", "slots")),
        *((name, ctypes.c_void_p) for name in ("data", "words", "groups", "scales", "sums")),
    ]


class Attention(ctypes.Structure):
    """What attention is given."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("parts", "about", "tiles", "angles", "bias", "norms")),
        *((name, ctypes.c_void_p) for name in ("sums", "queries", "splits", "scales", "words", "groups")),
        ("paths", ctypes.c_void_p),
        *((name, ctypes.c_longlong) for name in ("rows", "all_rows", "columns", "layer", "window", "split_count")),
        *((name, ctypes.c_longlong) for name in ("mixes", "chains")),
    ]


def build(folder: Path, text: str) -> Any:
    """The library of a model's kernels."""
    text = re.sub(r'asm volatile\("cp\.async\.wait.*', "", host_text(text))  # copies are there at once
    whole = _ENTRIES.replace("SHARED,", f"{SHARED_BYTES},").replace("TEXT", text)
    file = folder / "decode.cpp"
    file.write_text(whole)
    library = file.with_suffix(".so")
    command = [str(compiler()), "-std=c++20", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", "-I", str(HERE)]
    done = subprocess.run(
        [*command, str(file), str(HERE / "cuda_host.cpp"), "-o", str(library)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(str(library))


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at a whole 16 bytes."""
    held = np.zeros(array.nbytes + 16, np.uint8)
    at = -held.ctypes.data % 16
    made = held[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made
