// Whether events may be made, stored and sent: the visitor's consent, opt-out and privacy signals.

import type { CheckedOptions } from "./options.js";
import type { Storage } from "./storage.js";
import type { Consent, Status } from "./types.js";

export interface Permission {
  /** Why no events are made, or `null`. */
  disabledReason(): Status["disabledReason"];
  /** Whether events may be stored and sent. */
  granted(): boolean;
  setConsent(consent: Consent): void;
  setOptedOut(optedOut: boolean): void;
}

/** The opt-out is stored, the consent is not: the site states it on every page. */
export function createPermission({ consent, gpc, dnt }: CheckedOptions, storage: Storage): Permission {
  let optedOut = false;
  const self: Permission = {
    disabledReason() {
      const { globalPrivacyControl, doNotTrack } = navigator as { globalPrivacyControl?: boolean; doNotTrack?: string };
      // Another tab may have changed it. If it is gone, the application has cleared the storage.
      const stored = storage.get("out");
      if (stored) optedOut = stored === "1";
      else if (optedOut) storage.set("out", "1");
      if (optedOut) return "opted_out";
      if (gpc && globalPrivacyControl) return "gpc";
      if (dnt && doNotTrack === "1") return "dnt";
      return consent === "denied" ? "denied" : null;
    },
    granted: () => consent === "granted" && !self.disabledReason(),
    setConsent(given) {
      consent = given;
    },
    setOptedOut(out) {
      optedOut = out;
      storage.set("out", out ? "1" : "0");
    },
  };
  return self;
}
