// Counter-based random numbers: the same bits as trainpool/rng.py, of which this is the twin.
//
// Threefry-2x32 with 20 rounds: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
// Numbers count up to 2**53 here; where Python has 64 bits, a bigint carries them.

/** A stream's identity: two unsigned 32-bit words. */
export type Key = readonly [k0: number, k1: number];

/** A whole number: its low 64 bits count. */
export type Integer = number | bigint;

const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24];
const PARITY = 0x1bd11bda; // Threefish's key-schedule constant, truncated to 32 bits
const WORD = 2 ** 32;
export const ORDER = 1; // purpose tags: batch order, and the noise inputs of a training step
export const NOISE = 2;

/** Threefry-2x32-20 of the counter words in `x0` and `x1`, in place, under the key `k`. */
export function threefry(k: Key, x0: Uint32Array, x1: Uint32Array): void {
  const words = [k[0], k[1], k[0] ^ k[1] ^ PARITY];
  for (let i = 0; i < x0.length; i++) {
    let a = (x0[i]! + k[0]) | 0;
    let b = (x1[i]! + k[1]) | 0;
    for (let round = 0; round < 20; round++) {
      const rotation = ROTATIONS[round % 8]!;
      a = (a + b) | 0;
      b = ((b << rotation) | (b >>> (32 - rotation))) ^ a;
      if (round % 4 !== 3) continue;
      const group = (round + 1) / 4; // each fourth round ends with the next two words of the key
      a = (a + words[group % 3]!) | 0;
      b = (b + words[(group + 1) % 3]! + group) | 0;
    }
    x0[i] = a;
    x1[i] = b;
  }
}

/** The key of a seed. */
export function key(seed: Integer): Key {
  return [low(seed), high(seed)];
}

/** A new key from a key and a number: independent streams for independent purposes. */
export function fold(k: Key, data: Integer): Key {
  const x0 = Uint32Array.of(low(data));
  const x1 = Uint32Array.of(high(data));
  threefry(k, x0, x1);
  return [x0[0]!, x1[0]!];
}

/** A seed from a seed and numbers, below 2**53. */
export function derive(seed: Integer, ...data: Integer[]): number {
  const [k0, k1] = data.reduce<Key>(fold, key(seed));
  return (k0 & 0x1fffff) * WORD + k1;
}

/** Elements `start` to `start + count - 1` of the stream: the high and the low words of their 64 bits. */
export function bits(k: Key, start: number, count: number): [Uint32Array, Uint32Array] {
  const x0 = new Uint32Array(count);
  const x1 = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    x0[i] = low(start + i);
    x1[i] = high(start + i);
  }
  threefry(k, x0, x1);
  return [x0, x1];
}

/** Elements of the stream in [0, 1), on the grid of multiples of 2**-24. */
export function uniform(k: Key, start: number, count: number): Float32Array<ArrayBuffer> {
  const [top] = bits(k, start, count);
  return Float32Array.from(top, (word) => (word >>> 8) * 2 ** -24);
}

/** A permutation of `0..n-1`: the stable order of the stream's first n elements. */
export function permutation(k: Key, n: number): Uint32Array {
  const [x0, x1] = bits(k, 0, n);
  return Uint32Array.from({ length: n }, (_, i) => i).sort((a, b) => x0[a]! - x0[b]! || x1[a]! - x1[b]! || a - b);
}

/** The numbers of noise input `number` for the step whose first sample is `offset`. */
export function noise(seed: Integer, number: number, offset: number, count: number): Float32Array<ArrayBuffer> {
  return uniform(fold(fold(fold(key(seed), NOISE), number), offset), 0, count);
}

/**
 * The row numbers of each of `steps` batches of `batch` samples.
 *
 * A shard of `samples` rows is read in passes, each in a permutation of its own; `offset` is how many samples earlier
 * tasks took from this sequence.
 */
export function* batches(
  seed: Integer,
  samples: number,
  offset: number,
  steps: number,
  batch: number,
): Generator<Uint32Array> {
  const stream = fold(key(seed), ORDER);
  let position = offset;
  let current = -1;
  let order: Uint32Array = new Uint32Array();
  for (let step = 0; step < steps; step++) {
    const rows = new Uint32Array(batch);
    for (let filled = 0; filled < batch; ) {
      const start = position % samples;
      const number = (position - start) / samples;
      if (number !== current) [current, order] = [number, permutation(fold(stream, number), samples)];
      const part = order.subarray(start, start + batch - filled);
      rows.set(part, filled);
      filled += part.length;
      position += part.length;
    }
    yield rows;
  }
}

function low(value: Integer): number {
  return typeof value === "bigint" ? Number(BigInt.asUintN(32, value)) : value >>> 0;
}

function high(value: Integer): number {
  return typeof value === "bigint" ? Number(BigInt.asUintN(32, value >> 32n)) : Math.floor(value / WORD) >>> 0;
}
