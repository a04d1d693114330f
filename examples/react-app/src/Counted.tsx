// What has become of this page's events, for whoever looks at the example.

import { useEffect, useState } from "react";
import type { Status } from "tallymark";
import { useTracker } from "./events";

export function Counted() {
  const tracker = useTracker();
  const [status, setStatus] = useState<Status>();
  useEffect(() => {
    const timer = setInterval(() => setStatus(tracker.status()), 500);
    return () => clearInterval(timer);
  }, [tracker]);
  if (!status) return null;
  const { disabledReason, paused, failed } = status;
  return (
    <footer>
      <output data-delivered={status.delivered}>
        {status.made} made, {status.queued} waiting, {status.delivered} delivered
        {(disabledReason || paused || failed) && `, ${disabledReason || paused || failed}`}
      </output>
      <button type="button" onClick={disabledReason ? tracker.optIn : tracker.optOut}>
        {disabledReason ? "Count my visits" : "Do not count my visits"}
      </button>
    </footer>
  );
}
