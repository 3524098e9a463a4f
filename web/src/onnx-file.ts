// What an ONNX file holds, read before any runtime sees it: the twin of trainpool/onnx_file.py.
//
// ONNX is a protocol-buffers message. Few of its fields matter here, so they are read by their numbers in onnx.proto.
// Every length is checked against the bytes that are there, and no graph may hold another one, which bounds the depth.

import { ProgramError } from "./errors";

/** What a file consists of. */
export interface Contents {
  readonly operators: Set<string>;
  readonly inputs: string[];
  readonly outputs: string[];
  fields: number;
}

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;
const MOST_FIELDS = 2_000_000; // in one file: one of nothing but small fields is refused in seconds
/** ONNX Runtime takes bytes with this at 4 for a file of a format of its own, whatever they are as ONNX. */
const FLATBUFFER = "ORTM";

/** A field of a message: its number, and its value, which is a number or bytes. */
type Field = readonly [number: number, value: number | Uint8Array];

/** The operators, inputs and outputs of a model; raises `ProgramError` where it is damaged or holds what is not allowed. */
export function contents(file: Uint8Array): Contents {
  if (String.fromCharCode(...file.subarray(4, 8)) === FLATBUFFER) {
    throw new ProgramError("not an ONNX file, but one of ONNX Runtime's own format");
  }
  const found: Contents = { operators: new Set(), inputs: [], outputs: [], fields: 0 };
  let graphs = 0;
  for (const [number, value] of fields(file, found)) {
    if (number === 7) {
      graphs++;
      graph(message(value), found);
    } else if (number === 8) {
      for (const [inner, name] of fields(message(value), found)) if (inner === 1) standard(text(name), "imports");
    } else if (number === 20 || number === 25) {
      refuse(`has ${number === 20 ? "training information" : "functions of its own"}, which no program may have`);
    }
  }
  if (graphs !== 1) throw new ProgramError(`not an ONNX file: ${graphs} graphs`);
  return found;
}

function graph(data: Uint8Array, found: Contents): void {
  for (const [number, value] of fields(data, found)) {
    if (number === 1) {
      node(message(value), found);
    } else if (number === 5) {
      tensor(message(value), found);
    } else if (number === 11 || number === 12) {
      const names = number === 11 ? found.inputs : found.outputs;
      for (const [inner, name] of fields(message(value), found)) if (inner === 1) names.push(text(name));
    } else if (number === 15) {
      refuse("has sparse tensors, which no program may have");
    }
  }
}

function node(data: Uint8Array, found: Contents): void {
  for (const [number, value] of fields(data, found)) {
    if (number === 4) found.operators.add(text(value));
    else if (number === 7) standard(text(value), "uses");
    else if (number === 5) attribute(message(value), found);
  }
}

function attribute(data: Uint8Array, found: Contents): void {
  for (const [number, value] of fields(data, found)) {
    if (number === 5 || number === 10) tensor(message(value), found);
    else if (number === 6 || number === 11) refuse("has a graph inside of a graph, which no program may have");
    else if (number === 22 || number === 23) refuse("has sparse tensors, which no program may have");
  }
}

function tensor(data: Uint8Array, found: Contents): void {
  for (const [number, value] of fields(data, found)) {
    if (number === 13 || (number === 14 && value !== 0)) {
      refuse("keeps tensors in other files, which no program may do");
    }
  }
}

function standard(domain: string, how: string): void {
  if (domain !== "" && domain !== "ai.onnx") refuse(`${how} the domain '${domain.slice(0, 80)}'`);
}

function* fields(data: Uint8Array, found: Contents): Generator<Field> {
  let at = 0;
  while (at < data.length) {
    if (++found.fields > MOST_FIELDS) refuse(`has more than ${MOST_FIELDS.toLocaleString("en")} fields`);
    const tag = varint();
    // Other readers see the low 32 bits alone, that is, another field.
    if (tag >= 2 ** 32) throw new ProgramError("not an ONNX file: a field number of more than 29 bits");
    const number = Math.floor(tag / 8);
    const kind = tag % 8;
    if (number === 0) throw new ProgramError("not an ONNX file: field number 0");
    if (kind === VARINT) {
      yield [number, varint()];
      continue;
    }
    const length = kind === BYTES ? varint() : kind === FIXED64 ? 8 : kind === FIXED32 ? 4 : undefined;
    if (length === undefined) throw new ProgramError(`not an ONNX file: wire type ${kind}`);
    if (length > data.length - at) throw new ProgramError("an ONNX file that is cut short");
    yield [number, data.subarray(at, at + length)];
    at += length;
  }

  function varint(): number {
    let value = 0;
    for (let digit = 0; digit < 10; digit++) {
      const byte = data[at++];
      if (byte === undefined) throw new ProgramError("an ONNX file that is cut short");
      value += (byte % 128) * 128 ** digit;
      if (byte < 128) return value;
    }
    throw new ProgramError("not an ONNX file: a number of more than ten bytes");
  }
}

function message(value: number | Uint8Array): Uint8Array {
  if (typeof value === "number") throw new ProgramError("not an ONNX file: a number where a message belongs");
  return value;
}

function text(value: number | Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(message(value));
  } catch (error) {
    if (error instanceof TypeError) throw new ProgramError("not an ONNX file: a name that is no text");
    throw error;
  }
}

function refuse(why: string): never {
  throw new ProgramError(`the ONNX file ${why}`);
}
