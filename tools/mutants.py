"""Deliberate mistakes, one at a time, that the tests must catch: python tools/mutants.py [--out FOLDER] [name ...]

Each mistake is put into a copy of the sources, which is built (baseline kernels and the emulation) and tested. It runs with the
Python that runs it, where the extras dev and test are. A mistake that no test notices is an error of the suite.
With --out the mistakes that were caught are listed in FOLDER/mutants.json, and are not tried again: a run takes hours, and may be
ended at any time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torture.ledger import Ledger

ROOT = Path(__file__).parent.parent

MUTANTS: dict[str, tuple[str, str, str]] = {  # name: file, what stands there, what is put in its place
    "swapped gates": ("csrc/cells/lstm.h", "fma(f, c, i * g)", "fma(i, c, f * g)"),
    "swapped public order": ("csrc/cells/gru.h", "kInputBlocks[] = {1, 2, 0}", "kInputBlocks[] = {2, 1, 0}"),
    "swapped recurrent order": ("csrc/cells/gru.h", "kRecurrentBlocks[] = {1, 2, 3}", "kRecurrentBlocks[] = {2, 1, 3}"),
    "a lane of R too few": ("csrc/cpu/layout.h", "lane < lanes ? P::load_encoded", "lane + 1 < lanes ? P::load_encoded"),
    "R for backward from the wrong row": ("csrc/cpu/layout.h", "weight + (row + lane + k) * depth + first : nullptr", "weight + (row + lane) * depth + first : nullptr"),
    "wrong factor in a gradient": ("csrc/cells/gru.h", "out.da[1] = da_n * nh * r * (V(1) - r);", "out.da[1] = da_n * nh * r * (V(1) - r * r);"),
    "forgotten path of dh": ("csrc/cells/gru.h", "out.dprevious[0] = fma(dh1, z, out.dprevious[0]);", "out.dprevious[0] = out.dprevious[0];"),
    "forgotten path of dc": ("csrc/cells/lstm.h", "fma(-s, s, V(1)), in.dstate[1])", "fma(-s, s, V(1)), V(0))"),
    "a row of a tile too few": ("csrc/cpu/product.h", "const int count = each + (i < larger);", "const int count = each;"),
    "the head of a panel between pieces": ("csrc/cpu/layout.h", "to += P::kHead * stride;", ""),
    "peephole order": ("csrc/cells/lstm.h", "af = fma(in.param[1], c, af)", "af = fma(in.param[2], c, af)"),
    "peephole on the old c": ("csrc/cells/lstm.h", "ao = fma(in.param[2], c1, ao)", "ao = fma(in.param[2], c, ao)"),
    "slope of ReLU": ("csrc/cells/elman.h", "select(V(0) < h, V(1), V(0))", "V(1)"),
    "ignored length": ("csrc/cpu/step_mask.h", "!times.lengths || t < times.lengths[b];", "true;"),
    "length off by one": ("csrc/cpu/step_mask.h", "!times.lengths || t < times.lengths[b];", "!times.lengths || t <= times.lengths[b];"),
    "reverse starts at T": ("csrc/cpu/step_mask.h", "times.lengths ? times.lengths[b] - 1 : steps - 1;", "steps - 1;"),
    "ignored initial state": ("csrc/cpu/forward.h", "call_.restart_h : call_.h0 ? call_.h0 + b * s_.output : nullptr;", "call_.restart_h : nullptr;"),
    "one bias only": ("csrc/cpu/layout.h", "to[lane] += from[row + lane];", "to[lane] = from[row + lane];"),
    "a lost row of dW": ("csrc/cpu/backward.h", "const Index n = w.block_ends[block] - r;", "const Index n = w.block_ends[block] - r - (w.block_ends[block] - r > 8);"),
    "a part of the batch forgotten": ("csrc/cpu/backward.h", "for (Index part = 1; part < parts.count; ++part) sum", "for (Index part = 1; part < parts.count - 1; ++part) sum"),
    "the first chunk added to nothing": ("csrc/cpu/backward.h", "vectors, sums, stride, first_block && r == 0);", "vectors, sums, stride, false);"),
    "every chunk stored": ("csrc/cpu/backward.h", "vectors, sums, stride, first_block && r == 0);", "vectors, sums, stride, r == 0);"),
    "dx of one direction": ("csrc/stack.cpp", "add_rows(second, dx, call.steps, call.batch, s.layer_input(layer));", ""),
    "a layer does not wait": ("csrc/cpu/team.h", "chained_ && i > 0 ? (i - 1) * plan.parts + part : -1", "-1"),
    "bfloat16 cut, not rounded": ("csrc/cpu/precision.h", "(u + 0x7fffu + ((u >> 16) & 1u)) >> 16", "u >> 16"),
    "half of a pair of rows": ("csrc/cpu/precision.h", "const V low = load(rows[0]), high = load(rows[1]);", "const V low = load(rows[0]), high = load(rows[0]);"),
    "bytes without their zero": ("csrc/cpu/precision.h", "*correction = Word(-128 * sum);", "*correction = Word(-127 * sum);"),
    "NaN lost in bytes": ("csrc/cpu/precision.h", "return scale + sum_lanes(bad);", "return scale;"),
    "tiles without what is left of the depth": ("csrc/cpu/tiles.h", "if (k < depth) Sums::template add", "if (false) Sums::template add"),
    "few rows by vectors": ("csrc/cpu/tiles.h", "(!P::kSumsAreExact || rows >= kTileRows)", "rows >= kTileRows"),
    "tiles that are kept": ("csrc/cpu/tiles.h", "  tiles.release();\n  for (int m = 0; m < rows; ++m)\n    for (int j = 0; j < N; ++j)\n", "  for (int m = 0; m < rows; ++m)\n    for (int j = 0; j < N; ++j)\n"),
    "a stream forgets its state": ("csrc/bindings/stream.cpp", "f.h0 = hidden + layer * state, f.hn", "f.hn"),
    "stack without its second direction": ("csrc/stack.cpp", "f.y = {y.data + d * s.output, y.t, y.b, y.starts, y.ends};", "f.y = {y.data, y.t, y.b, y.starts, y.ends};"),
    "dropout in one direction": ("csrc/stack.cpp", "std::uint32_t(layer * 2 + d)", "std::uint32_t(layer * 2)"),
    "a gradient through a reset": ("csrc/cpu/backward.h", "if (!row.restart && !row.cut) continue;", "if (!row.cut) continue;"),
    "a cut that counts as a reset": ("csrc/cpu/backward.h", "if (restart) sums[u] += d[u];", "sums[u] += d[u];"),
    "no gradient of what is repeated": ("csrc/cpu/backward.h", "dh_[b * s_.padded_output + u] += dy[u];", "(void)dy[u];"),
    "the end of a masked row": ("csrc/cpu/step_mask.h", "times.stops[b] : steps * batch + b];", "times.stops[b] : (steps - 1) * batch + b];"),
    "pieces cut in front of the reset": ("csrc/core/times.h", "boundary = g.from_end ? t + 1 : t;", "boundary = t;"),
    "norms of one state": ("csrc/cpu/backward.h", "rows[i].scale_c = sums[1] >", "rows[i].scale_c = sums[0] >"),
    "a projection of one vector": ("csrc/cpu/forward.h", "store_left(V::load(tile[i] + v * L), y,", "store_left(V::load(tile[i]), y,"),
    "norms that a projection does not heed": ("csrc/cpu/backward.h", "keep_lanes(scaled(row, 0, arriving(row, 0, first, left)), left)", "keep_lanes(arriving(row, 0, first, left), left)"),
    "what is projected, of the old c": ("csrc/cells/lstm.h", "static V emitted(const V* saved, const V*, const V* next) {\n    return Lstm::hidden(saved, next);", "static V emitted(const V* saved, const V* previous, const V*) {\n    return Lstm::hidden(saved, previous);"),
    "a slope beyond the clip": ("csrc/cells/activation.h", "out.slope = select(a < low, V(T(0)), select(high < a, V(T(0)), out.slope));", ""),
    "a clip of c'": ("csrc/cells/general.h", "activated(s + 2 * kFunctionScalars, c1).value", "activated(s + 2 * kFunctionScalars, clip, c1).value"),
    "coupled gates that learn apart": ("csrc/cells/general.h", "(coupled ? g - c : g)", "g"),
    "the slope of ELU": ("csrc/cells/activation.h", "select(below, minus + alpha, V(1))", "select(below, minus + V(1), V(1))"),
    "one function for gates and candidate": ("csrc/cells/general.h", "activated(s + kFunctionScalars, clip, in.a[2])", "activated(s, clip, in.a[2])"),
    "c carried as it was normed": ("csrc/cells/layer_norm.h", "out.state[1] = in.emitted;", "out.state[1] = in.carried;"),
    "the variance of a sample": ("csrc/cpu/norm.h", "double(squares) / double(n) + kNormEps", "double(squares) / double(n > 1 ? n - 1 : 1) + kNormEps"),
    "pad lanes in a variance": ("csrc/cpu/norm.h", "if (left < V::kLanes) d = keep_lanes(d, left);", ""),
    "moments of a thread's own units": ("csrc/cpu/backward.h", "for_places(s_, op.columns, {0, s_.groups},", "for_places(s_, op.columns, groups,"),
    "a gain's gradient without the scale": ("csrc/cpu/backward.h", "fma(da, d * scale, V::load(sum)).store(sum);", "fma(da, d, V::load(sum)).store(sum);"),
    "a norm's gradient without its mean": ("csrc/cpu/backward.h", "(fma(da, V::load(gains + place), -mean) - d * slope) * scale", "(da * V::load(gains + place) - d * slope) * scale"),
    "deviations of the wrong row of a table": ("csrc/cpu/backward.h", "call_.projected + *at(call_.lookup.ids, t, b)", "call_.projected + *at(call_.lookup.ids, 0, b)"),
    "rows that one thread norms": ("csrc/cpu/forward.h", "norm_rows(part_of(n, index, count), w.out", "norm_rows({0, index ? 0 : n / count}, w.out"),
    "a border of one width": ("python/ostinato/_memory_limit.py", "n * (rows + cells)", "n * (rows + rows)"),
    "h of the first gate": ("csrc/cpu/forward.h", "saved[k] = V::load(tile + (k * units + u) * L);", "saved[k] = V::load(tile + u * L);"),
    "a row of the table of another step": ("csrc/cpu/forward.h", "call_.projected + *at(call_.lookup.ids, t, b)", "call_.projected + *at(call_.lookup.ids, 0, b)"),
    "sums by row that begin with the last call's": ("csrc/cpu/backward.h", "clear && k < rows.end", "false && k < rows.end"),
    "sums by row of the first vector": ("csrc/cpu/backward.h", "V::load(w.da_rows[0][i] + first + v * L)", "V::load(w.da_rows[0][i] + first)"),
    "a table's gradient of one direction": ("python/ostinato/nn/_table.py", "(weight, product, out, None,", "(weight, product, out if weight is self._weights[0] else None, None,"),
    "the tape in another order": ("csrc/cpu/backward.h", "tape = mask_.on_tape(t, i, b);", "tape = mask_.on_tape(t, b, b);"),
    "segments that begin anew": ("csrc/cpu/backward.h", "block == first_blocks_[part] && !call_.resume;", "block == first_blocks_[part];"),
    "blocks skipped at the other end": ("csrc/cpu/backward.h", "Range{0, count} : Range{all - count, all};", "Range{0, count} : Range{0, count};"),
    "sums of a part without rows left as they were": ("csrc/cpu/backward.h", "call_.resume ? 0 : 1", "0"),
    "rows that have ended for good": ("csrc/cpu/backward.h", "live.low = larger(live.low, stop);", "(void)stop;"),
    "a flat tape of other rows": ("csrc/cpu/step_mask.h", "times.tape[b] + t :", "times.tape[i] + t :"),
    "segments dealt apart": ("python/ostinato/_segments.py", '= self.order, t0', '= None, t0'),
    "dropout counts from the segment": ("csrc/stack.cpp", "std::uint64_t(call.first_step + t)", "std::uint64_t(t)"),
    "a held output forgotten": ("csrc/core/times.h", "g.held && g.repeat && g.held[b] ? kHeld : kSkipped", "kSkipped"),
    "a product of the device a link short": ("csrc/cuda/product.h", "for (int k = 0; k < left; ++k) {", "for (int k = 0; k + 1 < left; ++k) {"),
    "gates of the device in another order": ("csrc/cuda/forward.h", "raw[(table.gate[begin + column] * hidden", "raw[(table.gate[column] * hidden"),
    "a forgotten path of dh on the device": ("csrc/cuda/backward.h", "d[k] = out.dprevious[k];", "d[k] = T(0);"),
    "a fragment's other half": ("csrc/cuda/mma.h", "return 2 * i + word / 2 * 8; }", "return 2 * i + word % 2 * 8; }"),
    "a warp in its neighbour's place": ("csrc/cuda/product.h", "return thread / 32 / (kTileM / 16) * 16; }", "return 0; }"),
    "a slice of an engine left out": ("csrc/cuda/engine.h", "for (int k = 1; k < kSlices; ++k) {", "for (int k = 1; k + 1 < kSlices; ++k) {"),
    "low-order terms of a loop's rows left out": ("csrc/cuda/engine.h", "all.v[i] += low.v[i];", "all.v[i] += 0 * low.v[i];"),
    "low-order terms of a loop's weights left out": ("csrc/cuda/engine.h", "1 / kResidualScale<V>, sum) * of_column;", "0, sum) * of_column;"),
    "a loop's scales of another output": ("csrc/cuda/loop.h", "* place.scales.v[column]", "* place.scales.v[0]"),
    "a loop's states beyond float16": ("csrc/cuda/loop.h", "if (space.beyond == step) multiply_floats", "if (false) multiply_floats"),
    "a restart beyond float16": ("csrc/cuda/loop.h", "set(space, row, u, 0, value(hidden_after<C>(p, kRestart, b), u), step);", "set(space, row, u, 0, value(hidden_after<C>(p, kRestart, b), u), -1);"),
    "a loop's second cell in the place of the first": ("csrc/cuda/loop.h", "T* y = place.y + c * strides.next_y;", "T* y = place.y;"),
    "a loop that forgets where a row ends": ("csrc/cuda/loop.h", "if (s == 0 || begins(t, length)) {", "if (s == 0) {"),
    "a loop's gradients of a cell before": ("csrc/cuda/loop.h", "ask(c, s - kAhead / cells.count, length,", "ask(c, s - kAhead / cells.count + 1, length,"),
    "a slice of a step's product left out": ("csrc/cuda/backward.h", "k + i < count ? slices", "k + i + 1 < count ? slices"),
    "columns of a step's product left out": ("csrc/cuda/backward.h", "for (int group = 1; group < kGroups; ++group)", "for (int group = 1; group + 1 < kGroups; ++group)"),
    "a cut between slices and cells": ("csrc/cuda/backward.h", "    d[0] += sum();\n    cut<C, T>(p, g, t, b, u, d);\n", "    d[0] += sum();\n"),
    "a loop's rows all in few blocks": ("python/ostinato/_plan.py", "return next((n for n in ROWS if -(-batch // n) <= device.multiprocessors), ROWS[-1])", "return ROWS[-1]"),
    "a restart that the loop misses": ("csrc/cuda/loop.h", "mask.predecessor(t, b) != kRestart) return;", "mask.predecessor(t, b) != kRestart + 9) return;"),
    "a loop that reads the step before": ("csrc/cuda/loop.h", "if (c + 1 == cells.count) place.gx += strides.gx;", "if (c + 1 == cells.count && i + 1 < kAhead) place.gx += strides.gx;"),
    "a loop's dh of the step alone": ("csrc/cuda/loop.h", "space.d[0][row][u] += sum;", "space.d[0][row][u] = sum;"),
    "a stream's last slice": ("csrc/cuda/stream.h", "for (int s = 1; s < E::kSlices; ++s)", "for (int s = 1; s + 1 < E::kSlices; ++s)"),
    "an embedding's row too few": ("csrc/cuda/extras.h", "end = first(block.x + 1);", "end = first(block.x + 1) - 1;"),
    "another mask of dropout": ("csrc/cuda/extras.h", "std::uint32_t(layer * 2 + d)", "std::uint32_t(layer * 2)"),
    "a graph of other arrays": ("csrc/cuda/abi.h", "inline void add_field(std::uint64_t v, std::string* key) { add_bytes(v, key); }", "inline void add_field(std::uint64_t, std::string*) {}"),
    "an unknown field let through": ("csrc/cuda/abi.h", "  if (known == given.size()) return;", "  return;"),
    "a flow that all layers share": ("csrc/stack.cpp", "b.control.flow = g.flow + part * g.flow_part;", "b.control.flow = g.flow;"),
    "operands of float16 rounded down": ("csrc/cuda/half.h", "(m + 0xfff + (m >> 13 & 1)) >> 13", "m >> 13"),
    "layout of a product guessed": ("python/ostinato/_launch.py", "px = Rows(product, *(strides[1::-1] if x.batch_first else strides[:2]))", "px = Rows(product, *strides[:2])"),
    "a plan for too many units": ("python/ostinato/_plan.py", "if hidden <= n), 0)", "if hidden <= n + 1), 0)"),
    "a layer that does not move": ("python/ostinato/nn/_block.py", "grads = put(_device.host(self.grads))", "grads = self.grads"),
    "a word that is taken for an unset one": ("csrc/cuda/exchange.h", "return word == kUnset ? 0x7fff7fff : word;", "return word;"),
    "a block that does not wait": ("csrc/cuda/exchange_engine.h", "is_missing(words) && !lost", "false && !lost"),
    "the low-order term of a float left out": ("csrc/cuda/exchange_engine.h", "one(0, 1, 1), one(1, 0, 1);", "one(0, 1, 1);"),
    "two directions in one place": ("csrc/cuda/partition.h", "launch_args.problems + block.z) * slot_words", "launch_args.problems) * slot_words"),
    "a layer that hears the one below too late": ("csrc/cuda/partition.h", "stride(launch_args.problems * slot_words)", "stride(slot_words)"),
    "a layer that does not hear the one above": ("csrc/cuda/persistent_backward.h", "* (1 + upstream);", "* (1 + 0 * upstream);"),
    "a layer that hears the one above too late": ("csrc/cuda/persistent_backward.h", "walk.in[thread] += walk.slot_stride;\n          if", "walk.in[thread] += n == walk.steps ? 0 : walk.slot_stride;\n          if"),
    "the last step of a layer that follows": ("csrc/cuda/persistent_backward.h", "const int ahead = walk.range.upstream;", "const int ahead = 0 * walk.range.upstream;"),
    "a block of a cluster that does not wait": ("csrc/cuda/async_store.h", "if (block.all_of_warp(barrier.has_ended<true>(parity))) return false;", "return false;"),
    "a cluster that reads the words of another step": ("csrc/cuda/cluster.h", "multiply(block, space, n % 2, state.weights, sums);", "multiply(block, space, 0, state.weights, sums);"),
    "sums of a cluster in another block's place": ("csrc/cuda/cluster_backward.h", "source = rank * kSlices + slice(thread)", "source = slice(thread)"),
    "bytes that count for the other step of a cluster": ("csrc/cuda/async_store.h", "return step % 2 * int(sizeof(ByteBarrier));", "return 0 * step;"),
    "a cluster that goes on after a wait was given up": ("csrc/cuda/cluster.h", "if ((lost = space.arrived.wait(block, n, buffer))) break;", "lost = space.arrived.wait(block, n, buffer);"),
    "a block of a cluster that goes on backward": ("csrc/cuda/cluster_backward.h", "if (block.sync_block_any(lost)) break;", "block.sync_block_any(lost);"),
    "a restart that a cluster misses": ("csrc/cuda/cell_walk.h", "mask.predecessor(t, b) != kRestart) return;", "mask.predecessor(t, b) != kRestart + 9) return;"),
    "a second phase without what the first one saved": ("csrc/cuda/forward.h", "= F > 0 ? out.saved[k] : T(0);", "= T(0);"),
    "weights of another tile in the shared memory": ("csrc/cuda/exchange_engine.h", "k < kInRegisters ? 0 : k - kInRegisters][thread]", "0][thread]"),
    "a peer's sums of another step": ("csrc/cuda/persistent_backward.h", "sum += space.sums[walk.buffer][peer]", "sum += space.sums[0][peer]"),
    "the state after the step before": ("csrc/cuda/cell_walk_back.h", "      next = given.previous;\n", ""),
    "the first words of both rows twice": ("csrc/cuda/exchange_engine.h", "its.word[kCount - 1][part] : its.word[0][part]", "its.word[0][part] : its.word[0][part]"),
    "a clip that a persistent pass does not heed": ("csrc/cuda/cell_walk_back.h", "dh = incoming(pass.g, d[0], given.dy), dc", "dc"),
    "scales of another output": ("csrc/cuda/persistent.h", "sum *= scales[unit * columns.count() + i];", "sum *= scales[i];"),
    "parts of rows of the other end": ("csrc/cuda/problem.h", "return p.reverse ? Range{parts - chunk.end, parts - chunk.begin} : chunk;", "return chunk;"),
    "products that do not wait for the steps": ("python/ostinato/_launch.py", "                side.join()\n", ""),
    "a dx that one direction takes from the other": ("python/ostinato/_launch.py", "for some in map(rows_of, every) if to_both else [rows]:", "for some in [rows]:"),
    "a status that the host is not told": ("csrc/cuda/poison.h", "if (first == 0 && buffer.host_status) *buffer.host_status = status;", ""),
    "states that a later launch does not get": ("csrc/cuda/persistent.h", "step > 0 ? carry_of(p, range.z) : nullptr", "nullptr"),
    "more blocks than run at the same time": ("python/ostinato/_plan.py", "{1: device.multiprocessors,", "{1: 2 * device.multiprocessors,"),
    "a part of the device's gradients left out": ("csrc/cuda/backward.h", "for (Index part = 0; part < parts; ++part) sum +=", "for (Index part = 0; part < 1; ++part) sum +="),
    "a norm of the device whose mean goes nowhere": ("csrc/cuda/norm.h", "inverse * (gradient(i) - mean - normed(i) * dot)", "inverse * (gradient(i) - normed(i) * dot)"),
    "a sum of a row without its last pair": ("csrc/cuda/norm.h", "for (int n = kThreads / 2; n > 0; n /= 2)", "for (int n = kThreads / 2; n > 1; n /= 2)"),
    "biases that take the gradient behind the norm": ("csrc/cuda/passes.h", "run(ColumnKernel<T>{g.da[Q], g.bias_sums[Q]", "run(ColumnKernel<T>{g.dproducts[Q], g.bias_sums[Q]"),
    "a second phase's parameters forgotten": ("csrc/cuda/backward.h", "F + 1 < kPhaseCount<C> ? dparams_at<C>(p, g, t * p.batch + b, u)[k * p.hidden] : T(0);", "T(0);"),
    "a projection that repeats nothing": ("csrc/cuda/projection.h", "        repeat_output<C>(p, mask, t, b, j);\n", "        at(p.y, t, b)[j] = T(0);\n"),
    "dh that comes through the projection twice": ("csrc/cuda/projection.h", "        g.dh[i] = T(0);\n", ""),
    "the width of c for that of h": ("csrc/cuda/problem.h", "return is_projected<C>() ? p.output : p.hidden;", "return p.hidden;"),
    "a slot too many": ("csrc/bindings/stream.cpp", "all + (layer * batch + slots[i]) * width", "all + (layer * batch + i) * width"),
    "rows of the next sequence zeroed": ("csrc/cpu/forward.h", "t < smaller(steps.end, rows.ends[b] - rows.starts[b]); ++t)", "t < steps.end; ++t)"),
    "padding left as it was": ("csrc/cpu/forward.h", "continue;\n      fill_zero(at(rows, t, b), width);", "continue;"),
    "gates made again for other steps": ("csrc/cpu/forward.h", "const Index s0 = call_.reverse ? call_.steps - t1 : t0,", "const Index s0 = t0,"),
    "gates made again in the order of processing": ("csrc/cpu/forward.h", "return saved + ((t - t0)", "return saved + ((call_.reverse ? t1 - 1 - t : t - t0)"),
    "segments of flat rows from their beginning": ("python/ostinato/_segments.py", "np.minimum(self.starts + t0, len(self.x))", "np.minimum(self.starts, len(self.x))"),
    "tbptt that carries nothing": ("python/ostinato/train/_step.py", "        walk.known[walk.done] = state\n", "        walk.known[walk.done] = None\n"),
    "flow of one part": ("csrc/cpu/backward.h", "call_.control.flow[i] += flow_[part * call_.steps * C::kStates + i];", "call_.control.flow[i] = flow_[part * call_.steps * C::kStates + i];"),
    "imprecise tanh": ("csrc/cpu/math.h", "const V n = shifted - magic;", "const V n = shifted - magic + V(T(1e-6));"),
    "label smoothing": ("csrc/cpu/train.h", "d[target[i]] -= T((1 - smoothing) * weight);", "d[target[i]] -= T(weight);"),
    "Adam without correction": ("csrc/core/update.h", "s.rate / s.correction1", "s.rate"),
    "stale packed weights": ("python/ostinato/nn/_layer.py", "key, cache = (self.version,", "key, cache = (0,"),
    "a pullback that serves twice": ("python/ostinato/nn/_layer.py", "backward = self._unused.pop()", "backward = self._unused[-1]"),
    "a chain that forks": ("python/ostinato/nn/_tracing.py", 'if given.pop("x", None) is not self.now:', 'if given.pop("x", None) is None:'),
    "a layer lost from a list": ("python/ostinato/nn/_model.py", "            holder[key] = part\n", ""),
    "the forget bias beside its gate": ("python/ostinato/_cells.py", 'keep="f"', 'keep="i"'),
    "a write that is not atomic": ("python/ostinato/_files.py", "            os.replace(part, target)\n", "            target.write_bytes(b''); os.replace(part, target) if os.path.getsize(part) < 4000 else None\n"),
    "state not carried": ("python/ostinato/train/_fit.py", "self.state = self.walk.known[self.walk.done] if self.source.carries_state else None", "self.state = None"),
    "best parameters forgotten": ("python/ostinato/train/_fit.py", "p.flat[...] = self.best", "pass"),
    "CTC: a skip over equal labels": ("csrc/cpu/ctc.h", "i > 0 && i < count_ && labels_[i] != labels_[i - 1]", "i > 0 && i < count_"),
    "CTC: no skips": ("csrc/cpu/ctc.h", "i > 0 && i < count_ && labels_[i] != labels_[i - 1]", "false"),
    "CTC: the last blank alone ends": ("csrc/cpu/ctc.h", "sum(one_of(blanks, count_), one_of(labels, count_ - 1))", "sum(one_of(blanks, count_), one_of(labels, -1))"),
    "CTC: exponents of a skip that is none": ("csrc/cpu/ctc.h", "select(test, x.e, Vec<double>(x.kNone))", "x.e"),
    "CTC: sums that underflow": ("csrc/cpu/ctc.h", "d = select(d < V(-1000.0), V(-1000.0), d);", "d = select(d < V(-10.0), V(-1000.0), d);"),
    "CTC: one label of equal ones": ("csrc/cpu/ctc.h", "taken_[labels_[i]] += T(parts_[i]);", "taken_[labels_[i]] = T(parts_[i]);"),
    "CTC: blanks in the gradient": ("csrc/cpu/ctc.h", "taken_[c_.blank] = T(of_blank);", "taken_[c_.blank] = T(0);"),
    "CTC: backward skips of the label itself": ("csrc/cpu/ctc.h", "D::load(may_skip_ + kLanes + i + 1)", "D::load(may_skip_ + kLanes + i)"),
    "CTC: the scale of the first sequence": ("csrc/cpu/ctc.h", "scale(T(c_.scales[b_]))", "scale(T(c_.scales[0]))"),
    "CTC: a NaN that counts as impossible": ("csrc/cpu/ctc.h", "loss == loss && c_.zero_infinite", "c_.zero_infinite"),
    "CTC: exps of a part of a vector": ("csrc/cpu/ctc.h", "if (m < L) v = keep_lanes(v, m);", ""),
    "CTC: the top of the first vector": ("csrc/cpu/ctc.h", "tops = select(v < tops, tops, v);", "tops = k == 0 ? v : tops;"),
    "CTC: rows that are not cleared": ("csrc/bindings/ctc.cpp", "if (!seen[std::size_t(i)]) std::fill_n", "if (false) std::fill_n"),
    "labels that just fit": ("python/ostinato/losses/_ctc.py", "needed <= steps", "needed < steps"),
    "repeats that need no blank": ("python/ostinato/losses/_ctc.py", "needed = counts + equal.sum(1)", "needed = counts"),
    "a skipped sequence that counts": ("python/ostinato/losses/_ctc.py", "factors = np.where(possible, factors, 0)", "pass"),
    "a prefix of two beams": ("python/ostinato/decoding/_ctc.py", "        longer[parent, last[child]] = NEVER\n        scores", "        scores"),
    "a label again without a blank": ("python/ostinato/decoding/_ctc.py", "self.ends_blank[some] + log_p[last[some]]", "both[some] + log_p[last[some]]"),
    "an n-gram that counts the start": ("python/ostinato/decoding/_language.py", " & (flat[at + n - 1] != START)", ""),
    "an end in any rank": ("python/ostinato/decoding/_steps.py", "np.flatnonzero(ends[: self.width])", "np.flatnonzero(ends)"),
    "a nucleus of one too many": ("python/ostinato/decoding/_sampling.py", "before < top_p", "before <= top_p + 0.2"),
    "an edit lost at the top": ("python/ostinato/metrics.py", "(right_up << 1 | 1) & every", "(right_up << 1) & every"),
    "a version of XLA that it does not know": ("csrc/bindings/jax.cpp", "std::clamp(theirs, xla::kOldestMinor, xla::kNewestMinor)", "theirs"),
    "a gradient of XLA's memory as it was": ("csrc/bindings/jax.cpp", "if (count) std::memset(data, 0, std::size_t(count) * sizeof(T));", ""),
    "the device forgets skips": ("python/ostinato/losses/_ctc_arrays.py", "xp.where(skips[:, 2:], q[:, 2:], NONE)", "xp.where(skips[:, 2:], NONE, NONE)"),
    "a layer that reads what dropout has not touched": ("csrc/stack.cpp", "      x.data = tape->dropped.back().get();\n", ""),
    "dropout that gradients do not pass": ("csrc/stack.cpp", "if (call.dropout > 0) backend.drop(s, layer - 1, call, below[layer].get(), below[layer].get());", ""),
    "a reset's c of the first layer in all": ("csrc/stack.cpp", "f.restart_c = call.restart_c + part * s.hidden;", "f.restart_c = call.restart_c;"),
    "an initial state of the first layer in all": ("csrc/stack.cpp", "f.h0 = call.h0 + part * hidden_state;", "f.h0 = call.h0 + d * hidden_state;"),
    "a last state's gradient of the first layer in all": ("csrc/stack.cpp", "b.dhn = g.dhn + part * hidden_state;", "b.dhn = g.dhn;"),
    "a norm from before the values were clipped": ("python/ostinato/train/_step.py", "now = norm if t.clip_value is None else norm_of(model.flat_grads)", "now = norm"),
    "gradients of several batches that stay a sum": ("python/ostinato/train/_step.py", "                scale(model, 1 / _deferred.divisor(weight))\n", "                pass\n"),
    "a clip of what is below the bound": ("python/ostinato/optim/_clipping.py", "if norm > max_norm else None", "if norm < max_norm else None"),
    "parameters of two steps before": ("python/ostinato/train/_step.py", "also = Also(factor, self.previous)", "also = Also(factor, None)"),
    "a sum's gradient for that of a mean": ("python/ostinato/train/_step.py", "d = d * _deferred.scalar(weight, d.dtype) if summed else d", "pass"),
    "a running sum's gradient from its beginning": ("python/ostinato/_rules.py", "np.flip(np.cumsum(np.flip(d, axis), axis=axis), axis)", "np.cumsum(d, axis=axis)"),
    "what was not chosen has a gradient too": ("python/ostinato/_rules.py", "(y, lambda d: np.where(on, d.dtype.type(0), d)),", "(y, lambda d: d),"),
    "equal extremes that all take the whole gradient": ("python/ostinato/_rules.py", "return at * (d / np.sum(at, axis=axis, keepdims=True).astype(d.dtype))", "return at * d"),
    "a recording without its options": ("python/ostinato/_recording.py", "options, self.options_used = {**self.options, **options}, True", "self.options_used = True"),
    "a parameter that is another leaf each time": ("python/ostinato/_recording.py", "            self._leaves[key] = made\n", ""),
    "gates of Keras 1 in our order": ("python/ostinato/interop/_keras.py", "(0, 2, 1, 3) if kind", "(0, 1, 2, 3) if kind"),
    "peepholes of ONNX in our order": ("python/ostinato/interop/_onnx_nodes.py", 'i, o, f = np.split(arrays["P"][d], 3)', 'i, f, o = np.split(arrays["P"][d], 3)'),
    "gates written to ONNX in the order in which they are read": ("python/ostinato/interop/_onnx_nodes.py", "order = (_BACK if back else _ORDER)[kind]", "order = _ORDER[kind]"),
    "initial states of ONNX without their layout": ("python/ostinato/interop/_onnx_nodes.py", "value.swapaxes(0, 1) if layout else value", "value"),
    "outputs of ONNX without their layout": ("python/ostinato/interop/_onnx_graph.py", "axes = (first, second, d, f) if layout else", "axes = (first, d, second, f) if layout else"),
    "last states of ONNX without their layout": ("python/ostinato/interop/_onnx_graph.py", '("B", "S", "H") if layout else', '("S", "B", "H") if layout else'),
    "recurrent weights of cuDNN as they lie": ("python/ostinato/interop/_keras.py", "recurrent = [k.T for k in", "recurrent = [k for k in"),
}  # fmt: skip
TESTS = [
    "test_math",
    "test_kernels",
    "test_lookup",
    "test_projection",
    "test_layer_norm",
    "test_activations",
    "test_precision",
    "test_tiles",
    "test_stream_explain",
    "test_nn",
    "test_model",
    "test_vjp",
    "test_interop_keras",
    "test_interop_onnx",
    "test_losses_optim",
    "test_training_kernels",
    "test_train",
    "test_train_truth",
    "test_sequences",
    "test_segments",
    "test_outputs",
    "test_ragged",
    "test_model_stream",
    "test_train_sequences",
    "test_gradient_flow",
    "test_device",
    "test_gpu_arrays",
    "test_plan",
    "test_persistent",
    "test_cluster",
    "test_files",
    "test_xla_handlers",
    "test_fit_proof",
    "test_ctc",
    "test_decoding",
    "test_metrics",
]

# By the beginning of a file's path, the tests that are the likeliest to notice: they run first, the others after them.
FIRST = {
    "csrc/cuda/async_store": ["test_cluster"],
    "csrc/cuda/cell_walk": ["test_cluster", "test_persistent"],
    "csrc/cuda/cluster": ["test_cluster"],
    "csrc/cuda/exchange": ["test_persistent"],
    "csrc/cuda/partition": ["test_persistent"],
    "csrc/cuda/persistent": ["test_persistent"],
    "csrc/cuda/poison": ["test_persistent"],
    "csrc/cuda/": ["test_device", "test_gpu_arrays", "test_persistent"],
    "csrc/cpu/ctc": ["test_ctc"],
    "csrc/cells/layer_norm": ["test_layer_norm"],
    "csrc/cpu/norm": ["test_layer_norm"],
    "csrc/bindings/ctc": ["test_ctc"],
    "csrc/bindings/jax": ["test_xla_handlers"],
    "csrc/core/update": ["test_training_kernels"],
    "csrc/cpu/train": ["test_training_kernels", "test_losses_optim"],
    "csrc/cpu/math": ["test_math"],
    "csrc/bindings/stream": ["test_stream_explain", "test_model_stream"],
    "python/ostinato/_launch": ["test_gpu_arrays", "test_persistent"],
    "python/ostinato/_plan": ["test_plan", "test_persistent"],
    "python/ostinato/_segments": ["test_segments"],
    "python/ostinato/_files": ["test_files"],
    "python/ostinato/decoding": ["test_decoding"],
    "python/ostinato/losses": ["test_ctc", "test_losses_optim"],
    "python/ostinato/metrics": ["test_metrics"],
    "python/ostinato/nn": ["test_model", "test_nn"],
    "python/ostinato/_rec": ["test_vjp"],
    "python/ostinato/_rules": ["test_vjp"],
    "python/ostinato/interop/_keras": ["test_interop_keras"],
    "python/ostinato/interop/_onnx": ["test_interop_onnx"],
    "python/ostinato/train": ["test_train", "test_train_truth", "test_train_sequences"],
    "csrc/cells/general": ["test_activations"],
    "csrc/cells/activation": ["test_activations"],
    "csrc/cpu/precision": ["test_precision"],
    "csrc/cpu/tile": ["test_tiles"],
    "": ["test_kernels", "test_sequences", "test_nn"],
}


# By the beginning of a file's path, the targets with which a mistake is likeliest to be noticed: they are built and tested first,
# and everything else only if no test fails. One kind of numbers, or one cell of a device, takes a small part of the time of all.
TARGETS = {
    "csrc/cpu/precision": ["kernels_baseline_low", "kernels_baseline_exact_float"],
    "csrc/cpu/tile": ["kernels_baseline_low"],
    "csrc/cpu/ctc": ["kernels_baseline_ctc"],
    "csrc/cpu/": ["kernels_baseline_exact_float"],
    "csrc/cells/": ["kernels_baseline_exact_float"],
    "csrc/core/": ["kernels_baseline_exact_float"],
    "csrc/cuda/norm": ["emulated_7"],
    "csrc/cuda/projection": ["emulated_6"],
    "csrc/cuda/": ["emulated_2", "emulated_4"],  # LSTM and GRU
}


def tests_of(file: str) -> tuple[list[str], list[str]]:
    """Return the tests that a mistake in the file is likeliest to fail, and the others."""
    first = next((names for start, names in FIRST.items() if file.startswith(start)), FIRST[""])
    return first, [name for name in TESTS if name not in first]


def command(*words: str, folder: Path) -> str:
    """Return what a command prints that must succeed."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def build(folder: Path, targets: Sequence[str] = ()) -> None:
    """Build the modules, with new objects of these targets alone if there are any."""
    where = folder / "build"
    if not where.exists():
        options = [
            "CMAKE_BUILD_TYPE=Release",
            "CMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF",  # else each mistake is linked for 20 s
            "OSTINATO_SETS=baseline",
            "OSTINATO_EMULATED=ON",  # without it no test runs the code of a device
            f"Python_EXECUTABLE={sys.executable}",
            f"pybind11_DIR={command(sys.executable, '-m', 'pybind11', '--cmakedir', folder=folder).strip()}",
        ]
        define = [f"-D{option}" for option in options]
        command("cmake", "-S", ".", "-B", "build", "-G", "Ninja", *define, folder=folder)
    command("ninja", "-C", "build", *targets, folder=folder)
    modules = [path for name in ("_core", "_emulated") for path in where.glob(f"{name}.*.so")]
    for module in modules:
        if targets:  # nothing else is built, however old it is
            link = command(
                "ninja", "-C", "build", "-t", "commands", "-s", module.name, folder=folder
            )
            command(
                "sh",
                "-c",
                link.partition("\n")[2] if link.startswith("ninja:") else link,
                folder=where,
            )
        shutil.copy(module, folder / "python" / "ostinato")


def failure(folder: Path, tests: Sequence[str]) -> str:
    """Return the line of the first test that fails, or that the tests crashed; "" if all pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header"]
        + [str(folder / "tests" / f"{t}.py") for t in tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:  # by a signal, such as a wrong address
        return "a crash"
    if not done.returncode:
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not lines:
        sys.exit(
            f"expected tests that pass or fail, got:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        )
    return lines[0]


def caught(name: str, folder: Path) -> str:
    """Return the first test that catches the mistake, put into the sources in the folder, which are built without it; "" if none does."""
    file, old, new = MUTANTS[name]
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    first, others = tests_of(file)
    line = ""
    targets = next((some for start, some in TARGETS.items() if file.startswith(start)), [])
    if targets:
        build(folder, targets)
        line = failure(folder, first)
    if not line:
        build(folder)
        line = failure(folder, first) or failure(folder, others)
    print(f"{'caught' if line else 'MISSED':8}{name:44}{line[:110]}", flush=True)
    return line


def main() -> int:
    """Every mistake, or those named; the number that were missed is the exit status."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("names", nargs="*", help="mistakes; all without any")
    p.add_argument(
        "--out", help="folder of the list of mistakes that were caught, which are not tried again"
    )
    args = p.parse_args()
    names = args.names or list(MUTANTS)
    if unknown := [name for name in names if name not in MUTANTS]:
        sys.exit(f"expected names of mistakes, got {', '.join(unknown)}")
    for name, (file, old, _) in MUTANTS.items():
        if (count := (ROOT / file).read_text().count(old)) != 1:
            sys.exit(f"{name}: expected {old!r} once in {file}, found it {count} times")
    ledger = Ledger(args.out, "mutants")
    names = [name for name in names if ledger.of(name).get("mistake") != "\n".join(MUTANTS[name])]
    if not names:
        print("all of them were caught before")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder, built = Path(temporary) / "tree", Path(temporary) / "built"
        commit = command("git", "rev-parse", "--short=10", "HEAD", folder=ROOT).strip()
        for path in command("git", "ls-files", folder=ROOT).split():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
        build(folder)
        if line := failure(folder, TESTS):
            sys.exit(f"the tests fail without any mistake: {line}")
        folder.rename(built)
        missed = []
        for name in names:  # each on a copy at the same place, with the same dates: only what the mistake changes is built
            shutil.copytree(built, folder, symlinks=True)
            if line := caught(name, folder):
                ledger.add(name, mistake="\n".join(MUTANTS[name]), test=line, commit=commit)
            else:
                missed.append(name)
            shutil.rmtree(folder)
    print(
        f"{len(names) - len(missed)} of {len(names)} mistakes caught"
        + (f"; missed: {', '.join(missed)}" if missed else "")
    )
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
