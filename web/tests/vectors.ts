// The golden vectors, which Python's tests read as well.

import { readFileSync } from "node:fs";

const FOLDER = new URL("../../vectors/", import.meta.url);

export function bytes(path: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(readFileSync(new URL(path, FOLDER)));
}

export function json<T>(path: string): T {
  return JSON.parse(readFileSync(new URL(path, FOLDER), "utf-8"));
}

export function base64(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(Buffer.from(text, "base64"));
}
