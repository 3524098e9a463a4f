// A server on a free port of this machine, for folders of built files; pages are isolated, as threads need.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join, normalize } from "node:path";
import { isolation } from "../../vite.config";

const TYPES: Record<string, string> = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

export interface Site {
  readonly url: string;
  close(): void;
}

/** Serve each folder under its name: `/name/…`. */
export async function serve(folders: Record<string, string>): Promise<Site> {
  const server = createServer(async (request, response) => {
    const [, name = "", ...rest] = normalize(decodeURIComponent((request.url ?? "").split("?")[0]!)).split("/");
    try {
      const data = await readFile(join(folders[name] ?? "/nowhere", ...rest));
      response.writeHead(200, {
        "Content-Type": TYPES[extname(rest.at(-1) ?? "")] ?? "application/octet-stream",
        ...isolation,
      });
      response.end(data);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}
