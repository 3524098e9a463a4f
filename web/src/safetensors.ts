// Messages with tensors as safetensors files: eight bytes of header length, the header as JSON, the tensors' bytes.
//
// The twin of trainpool/wire.py. A file may come from anyone: every offset is checked before a byte is looked at.

import { MessageError } from "./errors";
import type { Check } from "./messages";

// In the order in which tensors stand in a file: the widest first, so that each starts at a multiple of its width.
const KINDS = {
  I64: BigInt64Array,
  F64: Float64Array,
  F32: Float32Array,
  I32: Int32Array,
  U16: Uint16Array,
  I16: Int16Array,
  I8: Int8Array,
  U8: Uint8Array,
  BOOL: Uint8Array,
} as const;

export type Kind = keyof typeof KINDS;
export type Values =
  | BigInt64Array<ArrayBuffer>
  | Float64Array<ArrayBuffer>
  | Float32Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Int16Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>;

/** A tensor: its type by safetensors' name, its shape, its elements in C order. */
export interface Tensor {
  readonly kind: Kind;
  readonly shape: readonly number[];
  readonly values: Values;
}

export type Tensors = ReadonlyMap<string, Tensor>;

/** A file, taken apart; the message is the JSON of the metadata's entry of that name. */
export interface File<T> {
  readonly message: T;
  readonly tensors: Tensors;
}

const MAX_HEADER = 100_000_000; // the format's own bound
const PREFIX = 8;

/** A tensor of float32. */
export function floats(values: Float32Array<ArrayBuffer>, shape: readonly number[] = [values.length]): Tensor {
  return { kind: "F32", shape, values };
}

/** A message and tensors as one file, in the order in which Python's library writes them. */
export function encode(message: unknown, tensors: Tensors): Uint8Array<ArrayBuffer> {
  const kinds = Object.keys(KINDS);
  const ordered = [...tensors].sort(
    ([a, one], [b, two]) => kinds.indexOf(one.kind) - kinds.indexOf(two.kind) || (a < b ? -1 : 1),
  );
  const header: Record<string, unknown> = { __metadata__: { message: JSON.stringify(message) } };
  let end = 0;
  for (const [name, tensor] of ordered) {
    const start = end;
    end += tensor.values.byteLength;
    header[name] = { dtype: tensor.kind, shape: tensor.shape, data_offsets: [start, end] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = Math.ceil(text.length / 8) * 8; // padded with spaces
  const file = new Uint8Array(PREFIX + length + end).fill(0x20, PREFIX, PREFIX + length);
  new DataView(file.buffer).setBigUint64(0, BigInt(length), true);
  file.set(text, PREFIX);
  let at = PREFIX + length;
  for (const [, { values }] of ordered) {
    file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), at);
    at += values.byteLength;
  }
  return file;
}

/** Take a file apart and check its message; raises `MessageError`. Tensors share the file's memory where they can. */
export function decode<T>(file: Uint8Array<ArrayBuffer>, check: Check<T>): File<T> {
  try {
    const { message, tensors } = take(file);
    return { message: check(message, "$"), tensors };
  } catch (error) {
    if (!(error instanceof MessageError || error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new MessageError(`not a trainpool message: ${error.message}`);
  }
}

function take(file: Uint8Array<ArrayBuffer>): File<unknown> {
  if (file.length < PREFIX) fail(`it has ${file.length} bytes, too few for a header`);
  const length = Number(new DataView(file.buffer, file.byteOffset, PREFIX).getBigUint64(0, true));
  if (length > MAX_HEADER) fail("the header is too large");
  if (length > file.length - PREFIX) fail("the header is longer than the file");
  const text = new TextDecoder("utf-8", { fatal: true }).decode(file.subarray(PREFIX, PREFIX + length));
  const { __metadata__: metadata, ...entries } = record(JSON.parse(text), "the header");
  const body = file.subarray(PREFIX + length);
  const tensors = new Map<string, Tensor>();
  const spans: [start: number, end: number][] = [];
  for (const [name, entry] of Object.entries(entries)) {
    const { dtype, shape, data_offsets: offsets } = record(entry, `tensor ${name}`);
    if (!counts(shape)) fail(`tensor ${name} has no proper shape`);
    if (!counts(offsets) || offsets.length !== 2) fail(`tensor ${name} has no proper offsets`);
    const [start, end] = offsets as [number, number];
    if (typeof dtype !== "string" || !Object.hasOwn(KINDS, dtype)) fail(`tensor ${name} has the unknown type ${dtype}`);
    const kind = dtype as Kind;
    const size = shape.reduce((product, n) => product * n, 1);
    if (end - start !== size * width(kind)) fail(`tensor ${name} has ${end - start} bytes, which is not its shape's`);
    if (end > body.length) fail(`tensor ${name} ends after the file`);
    spans.push([start, end]);
    tensors.set(name, { kind, shape, values: view(kind, body, start, size) });
  }
  let covered = 0;
  for (const [start, end] of spans.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (start !== covered) fail(`tensors overlap or leave a hole at byte ${Math.min(start, covered)}`);
    covered = end;
  }
  if (covered !== body.length) fail(`${body.length - covered} bytes belong to no tensor`);
  const { message } = record(metadata, "the metadata");
  if (typeof message !== "string") fail("it carries no message");
  return { message: JSON.parse(message), tensors };
}

function view(kind: Kind, body: Uint8Array<ArrayBuffer>, start: number, size: number): Values {
  const Type = KINDS[kind];
  const at = body.byteOffset + start;
  if (at % Type.BYTES_PER_ELEMENT === 0) return new Type(body.buffer, at, size);
  return new Type(body.slice(start, start + size * Type.BYTES_PER_ELEMENT).buffer, 0, size);
}

function width(kind: Kind): number {
  return KINDS[kind].BYTES_PER_ELEMENT;
}

function counts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0);
}

function record(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return fail(`${what} is missing or no object`);
  return value as Record<string, unknown>;
}

function fail(why: string): never {
  throw new MessageError(why);
}
