"""The networks: the generator mDCSRN and the critics.

It may import degradation and files.
"""

from mrisr.models.critic import Critic, build_critic
from mrisr.models.mdcsrn import MDCSRN

__all__ = ["MDCSRN", "Critic", "build_critic"]
