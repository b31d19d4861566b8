"""Door: what a run would take.  Run: python -m stages.plan"""

from stages.stage import command

if __name__ == "__main__":
    command("plan", "stages.plan.plan:main")
